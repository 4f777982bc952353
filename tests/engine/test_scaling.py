"""The scale of a merged task vector, in numbers that can be checked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import dopkit
from dopkit import adding
from dopkit.engine.scaling import Norms, scaled, squares
from dopkit.preparing import Options

BASE = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
ONE = torch.tensor([[3.0, 0.0], [0.0, 4.0]])  # task vectors: norms 5 and 5, their mean [[3, 0], [0, 0]]
TWO = torch.tensor([[3.0, 0.0], [0.0, -4.0]])


def write(folder: Path, weights: Tensor, dtype: torch.dtype = torch.float32) -> Path:
    folder.mkdir()
    save_file({"layer.weight": weights.to(dtype)}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def merge(
    root: Path, tasks: list[Tensor], scale: object, dtype: torch.dtype = torch.float32, **options: object
) -> dopkit.Result:
    """The mean of models ``BASE + task``, its task vector scaled."""
    write(root / "base", BASE, dtype)
    for index, task in enumerate(tasks):
        write(root / f"e{index}", BASE + task, dtype)
    models = "".join(f"\n- ./e{index}" for index in range(len(tasks)))
    parameters = f"{{scale: {scale}, exclude: ['*']}}"
    text = f"base_model: ./base\nmerge_method: dop\nparameters: {parameters}\nmodels:{models}\n"
    return dopkit.run(dopkit.parse_recipe(text, folder=root), root / "out", Options(**options))  # type: ignore[arg-type]


def result(folder: Path) -> Tensor:
    return load_file(folder / "model.safetensors")["layer.weight"]


def test_a_number_multiplies_the_merged_task_vector(tmp_path: Path) -> None:
    done = merge(tmp_path, [ONE, TWO], 2)
    assert result(tmp_path / "out").tolist() == [[7.0, 1.0], [1.0, 1.0]]
    assert done.receipt["scale"] == 2


def test_norm_gives_it_the_mean_norm_of_the_models(tmp_path: Path) -> None:
    done = merge(tmp_path, [ONE, TWO], "norm")
    assert done.receipt["scale"] == pytest.approx(5 / 3, rel=1e-15)
    assert torch.allclose(result(tmp_path / "out"), torch.tensor([[6.0, 1.0], [1.0, 1.0]]), rtol=1e-6)
    state = json.loads((tmp_path / "out" / "dopkit_state.json").read_text())
    assert state["norms"] == [5.0, 5.0] and state["scale"] == done.receipt["scale"]


def test_every_step_has_a_scale_of_its_own(tmp_path: Path) -> None:
    """The first model is taken as it is; after three the mean is [[2, 0], [0, 0]], the mean norm 10/3."""
    merge(tmp_path, [ONE, TWO, torch.zeros(2, 2)], "norm", save_steps=True)
    assert torch.equal(result(tmp_path / "out" / "steps" / "01"), BASE + ONE)
    assert torch.allclose(result(tmp_path / "out" / "steps" / "02"), torch.tensor([[6.0, 1.0], [1.0, 1.0]]))
    assert torch.allclose(result(tmp_path / "out"), torch.tensor([[1 + 10 / 3, 1.0], [1.0, 1.0]]))


@pytest.mark.parametrize("tasks", [[ONE, -ONE], [torch.zeros(2, 2), torch.zeros(2, 2)]])
def test_a_zero_task_vector_stays_zero(tmp_path: Path, tasks: list[Tensor]) -> None:
    """Tasks that cancel, and models that never moved: no norm can be given to that, and nothing is divided by it."""
    done = merge(tmp_path, tasks, "norm")
    assert torch.equal(result(tmp_path / "out"), BASE)
    assert done.receipt["scale"] == 1.0


@pytest.mark.parametrize("scale", [2, "norm"])
def test_bfloat16_is_rounded_once(tmp_path: Path, scale: object) -> None:
    """Scaled in float32, cast at the end: 1 + 0.01 s in bfloat16 is not what scaling the rounded mean gives."""
    tasks = [torch.tensor([[0.0156250, 1.0], [0.0, 0.0]]), torch.tensor([[0.0078125, -1.0], [0.0, 0.0]])]
    done = merge(tmp_path, tasks, scale, torch.bfloat16)
    mean = (tasks[0] + tasks[1]) / 2  # 0.01171875: 1.01171875 is no bfloat16
    expected = (BASE + done.receipt["scale"] * mean).to(torch.bfloat16)
    found = result(tmp_path / "out")
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)
    late = (BASE + done.receipt["scale"] * ((BASE + mean).to(torch.bfloat16) - BASE)).to(torch.bfloat16)
    assert not torch.equal(expected, late)


@pytest.mark.parametrize("scale", [2, "norm"])
def test_an_addition_takes_the_old_scale_back_first(tmp_path: Path, scale: object) -> None:
    """Two merged and scaled, a third added: what three at once give."""
    three = torch.tensor([[0.0, 6.0], [8.0, 0.0]])
    (tmp_path / "whole").mkdir()
    merge(tmp_path / "whole", [ONE, TWO, three], scale)
    merge(tmp_path, [ONE, TWO], scale)
    write(tmp_path / "e2", BASE + three)
    adding.add(tmp_path / "out", [str(tmp_path / "e2")])
    assert torch.allclose(result(tmp_path / "out"), result(tmp_path / "whole" / "out"), rtol=1e-6)
    states = [json.loads((place / "out" / "dopkit_state.json").read_text()) for place in (tmp_path, tmp_path / "whole")]
    assert states[0]["norms"] == states[1]["norms"]
    assert states[0]["scale"] == pytest.approx(states[1]["scale"], rel=1e-6)


def test_norms() -> None:
    norms = Norms((3.0, 5.0, 10.0), {1: 3.0, 2: 8.0, 3: 0.0})
    assert [norms.scale(step) for step in (1, 2, 3)] == [1.0, 0.5, 1.0]


def test_the_arithmetic_leaves_its_inputs_alone() -> None:
    base, merged = BASE.clone(), BASE + ONE
    assert scaled(base, merged, 0.5).tolist() == [[2.5, 1.0], [1.0, 3.0]]
    assert squares(base, merged) == 25.0
    assert torch.equal(base, BASE) and torch.equal(merged, BASE + ONE)


def test_squares_are_added_in_float64() -> None:
    """A sum in float32 would lose the small ones beside 2**24."""
    model = torch.ones(1 << 10)
    model[0] = 2.0**12
    assert squares(torch.zeros(1 << 10), model) == 2.0**24 + 1023


def test_a_model_that_is_copied_has_nothing_to_scale(tmp_path: Path) -> None:
    write(tmp_path / "base", BASE)
    write(tmp_path / "e0", BASE + ONE)
    text = "base_model: ./base\nmerge_method: opcm\ncopy: ['*']\nmodels: [./e0]\n"
    done = dopkit.run(dopkit.parse_recipe(text, folder=tmp_path), tmp_path / "out", Options(save_steps=True))
    assert torch.equal(result(tmp_path / "out"), BASE) and done.receipt["scale"] == 1
