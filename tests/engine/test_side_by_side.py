"""Several parts of tensors in hand at once: the same bytes as one after the other, and a clean end whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file
from stopping import Stopped, stop_after

import dopkit
from dopkit.engine import Engine, cutting, pieces
from dopkit.errors import MergeError
from dopkit.planning import jobs
from dopkit.progress import Progress

MakeRecipe = Callable[..., dopkit.Recipe]
CASES = {
    "dop": ("vit", "dop", {}),
    "dop alone": ("vit", "dop", {}),
    "average": ("llama", "average", {}),
    "linear": ("llama", "linear", {"weight": 0.3}),
    "ties": ("llama", "ties", {"density": 0.4}),
    "dare": ("llama", "dare_linear", {"density": 0.4}),
    "opcm": ("vit", "opcm", {}),  # results wait for the scale of the whole model
}


def merged_by(
    monkeypatch: pytest.MonkeyPatch, hands: int, recipe: dopkit.Recipe, out: Path, progress: Progress | None = None
) -> dopkit.Result:
    monkeypatch.setattr("dopkit.helping.Engine", partial(Engine, hands=hands))
    return dopkit.run(recipe, out, progress=progress)


def hands_at_work() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("dopkit-")]


def weights(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]


@pytest.mark.parametrize("case", CASES)
def test_the_same_bytes_whatever_is_in_hand(
    case: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    make_recipe: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Small blocks and cuts, so that every tensor is many parts; the receipt tells the tensors in the plan's order."""
    family, method, parameters = CASES[case]
    root: Path = request.getfixturevalue(family)
    monkeypatch.setattr(jobs, "BLOCK_ELEMENTS", 200)
    monkeypatch.setattr(cutting, "CUT_ELEMENTS", 50)
    if case == "dop alone":
        monkeypatch.setattr(pieces, "ALONE_SIDE", 8)
    recipe = make_recipe(root, ["e0", "e1", "e2"], method, parameters=parameters)
    results = [merged_by(monkeypatch, hands, recipe, tmp_path / str(hands)) for hands in (1, 2, 3)]
    one, *others = (weights(tmp_path / str(hands)) for hands in (1, 2, 3))
    assert all(other == one for other in others)
    told = [
        {name: (entry["rule"], entry.get("steps")) for name, entry in result.receipt["tensors"].items()}
        for result in results
    ]
    assert told[0] == told[1] == told[2]
    assert list(told[2]) == [job.name for job in results[2].plan.jobs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["linear", "ties", "task_arithmetic", "dare_ties"])
def test_cuts_give_what_the_whole_gives(
    method: str, dtype: torch.dtype, tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(37, 23, generator=generator)
    for name in ("base", "a", "b", "c"):
        (tmp_path / name).mkdir()
        own = base + 0.01 * torch.randn(37, 23, generator=generator)
        tensors = {"layer.weight": own.to(dtype), "scale": own[0, 0].to(dtype, copy=True)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    parameters = {"linear": {"weight": 0.3}, "task_arithmetic": {}}.get(method, {"density": 0.5})
    recipe = make_recipe(tmp_path, ["a", "b", "c"], method, parameters=parameters)
    dopkit.run(recipe, tmp_path / "whole")
    monkeypatch.setattr(cutting, "CUT_ELEMENTS", 50)  # two rows
    dopkit.run(recipe, tmp_path / "cut")
    monkeypatch.setattr(cutting, "_fresh", lambda plan: False)
    dopkit.run(recipe, tmp_path / "uncut")
    assert weights(tmp_path / "whole") == weights(tmp_path / "cut") == weights(tmp_path / "uncut")


def test_a_merge_that_was_stopped_goes_on_with_other_hands(
    llama: Path, tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(llama, ["e0", "e1"], "ties", parameters={"density": 0.5})
    merged_by(monkeypatch, 1, recipe, tmp_path / "whole")
    with monkeypatch.context() as stopping:
        stop_after(stopping, 5)
        with pytest.raises(Stopped):
            merged_by(monkeypatch, 3, recipe, tmp_path / "out")
    assert not hands_at_work()
    journal = tmp_path / "out.partial" / "journal.jsonl"
    assert journal.read_text().count('"crc"') == 5
    result = merged_by(monkeypatch, 2, recipe, tmp_path / "out")
    assert result.receipt["run"]["resumed"]
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


class Pressed(Progress):
    """The user has had enough after some tensors."""

    def __init__(self) -> None:
        self.left = 4

    def advance(self, nbytes: int, effort: float) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_a_key_stops_everything(
    vit: Path, tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(vit, ["e0", "e1", "e2"], "dop")
    with pytest.raises(KeyboardInterrupt):
        merged_by(monkeypatch, 3, recipe, tmp_path / "out", Pressed())
    assert not hands_at_work()
    assert not (tmp_path / "out").exists()
    merged_by(monkeypatch, 1, recipe, tmp_path / "out")
    merged_by(monkeypatch, 2, recipe, tmp_path / "whole")
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_the_first_of_two_spoilt_tensors_is_told(
    vit: Path, tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the order of the plan, though both are in hand."""

    def spoil(tensors: tiny.Tensors) -> tiny.Tensors:
        for tensor in tensors.values():
            tensor.view(-1)[0] = float("nan")
        return tensors

    tiny.edit(vit / "base", tmp_path / "base", dict)
    tiny.edit(vit / "e0", tmp_path / "e0", spoil)
    recipe = make_recipe(tmp_path, ["e0"], "task_arithmetic")
    first = dopkit.plan(recipe).jobs[0].name
    for attempt in range(5):
        with pytest.raises(MergeError, match=f"cannot merge {first} "):
            merged_by(monkeypatch, 3, recipe, tmp_path / f"out{attempt}")
    assert not hands_at_work()
