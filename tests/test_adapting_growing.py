"""Merged adapters that grow: what ``add`` gives is what merging all at once gives, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from adapters import applied, assert_the_full_merge, make_adapted, make_adapter, recipe
from click.testing import CliRunner
from hubserver import CLIENT_WARNING, TestHub, connect

import dopkit
from dopkit import adding
from dopkit.cli import main
from dopkit.errors import DopkitError, OutputError, PlanError, RecipeError
from dopkit.preparing import Options
from dopkit.publishing import PushOptions

THREE, FOUR = "[./a0, ./a1, ./a2]", "[./a0, ./a1, ./a2, ./a3]"
# Methods that go on to the last bit.
EXACT = {
    "dop": ("dop", {}),
    "dop by count": ("dop", {"alpha": "by-count", "other": "base"}),
    "dop, half": ("dop", {"other": "half", "exclude": ["*v_proj*"]}),
    "task_arithmetic": ("task_arithmetic", {"lambda": 0.4}),
    "average": ("average", {}),
}
CLOSE = {
    "linear": ("linear", {"weight": 1.0}),
    "task_arithmetic, normalized": ("task_arithmetic", {"normalize": True}),
    "dop, scale": ("dop", {"scale": 1.5}),
    "dop, norm": ("dop", {"scale": "norm"}),
}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_adapted(tmp_path_factory.mktemp("adapted"))
    for number in range(4):  # of matrices alone
        modules = ["q_proj", "v_proj", "down_proj"][number % 2 :]
        make_adapter(root / "base", root / f"m{number}", seed=20 + number, target_modules=modules, r=1 + number)
    return root


def merge(root: Path, out: Path, models: str, method: tuple[str, dict[str, object]], **keys: object) -> Path:
    dopkit.run(recipe(root, method[0], models, parameters=method[1], output="adapter", **keys), out)
    return out


@pytest.mark.parametrize("name", EXACT)
def test_a_split_merge_has_the_bits_of_the_whole_one(name: str, adapted: Path, tmp_path: Path) -> None:
    """Merging A, B, C, D; merging A, B and adding C, then D; and adding both at once."""
    whole = merge(adapted, tmp_path / "whole", FOUR, EXACT[name])
    grown = merge(adapted, tmp_path / "grown", "[./a0, ./a1]", EXACT[name])
    both = [str(adapted / "a2"), str(adapted / "a3")]
    adding.add(grown, both, tmp_path / "once")
    adding.add(grown, both[:1])
    result = adding.add(grown, both[1:])
    assert result.folder == grown.absolute()
    for folder in (grown, tmp_path / "once"):
        assert tiny.weights(folder) == tiny.weights(whole)
        for file in ("adapter_config.json", "dopkit_recipe.yaml"):
            assert (folder / file).read_text() == (whole / file).read_text()
        state = json.loads((folder / "dopkit_state.json").read_text())
        assert state == json.loads((whole / "dopkit_state.json").read_text())


@pytest.mark.parametrize("name", {**EXACT, **CLOSE})
def test_a_grown_one_is_the_full_merge(name: str, adapted: Path, tmp_path: Path) -> None:
    """Of the models that the adapters make, within float32 rounding, whatever modules they have."""
    method = {**EXACT, **CLOSE}[name]
    grown = merge(adapted, tmp_path / "grown", "[./a0, ./a1]", method)
    adding.add(grown, [str(adapted / "a2")])
    adding.add(grown, [str(adapted / "a3")])
    made = recipe(adapted, method[0], FOUR, parameters=method[1], output="adapter")
    assert_the_full_merge(adapted, grown, made)
    whole = merge(adapted, tmp_path / "at-once", FOUR, method)
    ours, theirs = (json.loads((folder / "dopkit_state.json").read_text()) for folder in (grown, whole))
    assert (ours["models"], ours["inexact"]) == (theirs["models"], None)
    assert ours["scale"] == pytest.approx(theirs["scale"], rel=1e-5)
    assert ours["norms"] == pytest.approx(theirs["norms"], rel=1e-5)


def test_the_receipt_keeps_what_was_recorded_before(adapted: Path, tmp_path: Path) -> None:
    whole = merge(adapted, tmp_path / "whole", FOUR, ("dop", {}))
    grown = merge(adapted, tmp_path / "grown", THREE, ("dop", {}))
    result = adding.add(grown, [str(adapted / "a3")])
    q = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    ours, theirs = result.receipt["tensors"][q]["steps"], dopkit.receipt.read(whole)["tensors"][q]["steps"]
    assert ours == theirs
    assert result.receipt["merged_before"] == 3
    assert [Path(one["model"]).name for one in result.receipt["models"]] == ["a0", "a1", "a2", "a3"]
    assert "merged from 4 adapters" in (grown / "README.md").read_text()
    assert "the last of several merges, which added 1 model" in (grown / "README.md").read_text()


def test_the_earlier_adapters_may_be_gone(adapted: Path, tmp_path: Path) -> None:
    for name in ("base", "a0", "a1", "a2"):
        shutil.copytree(adapted / name, tmp_path / name)
    grown = merge(tmp_path, tmp_path / "grown", "[./a0, ./a1]", ("dop", {}))
    for name in ("a0", "a1"):
        shutil.rmtree(tmp_path / name)
    adding.add(grown, [str(tmp_path / "a2")])
    merge(adapted, tmp_path / "whole", THREE, ("dop", {}))
    ours, theirs = applied(tmp_path, grown), applied(adapted, tmp_path / "whole")
    assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-6) for name in theirs)


def test_without_a_base_in_the_recipe(adapted: Path, tmp_path: Path) -> None:
    """The base is the one that the adapters name; what is written says so."""
    for number in range(3):
        name = f"a{number}"
        shutil.copytree(adapted / name, tmp_path / name)
        config = tmp_path / name / "adapter_config.json"
        named = {**json.loads(config.read_text()), "base_model_name_or_path": str(adapted / "base")}
        config.write_text(json.dumps(named))
    text = "merge_method: average\nmodels: [./a0, ./a1]\noutput: adapter\norder: shuffle\nseed: 3\n"
    grown = dopkit.run(dopkit.parse_recipe(text, folder=tmp_path), tmp_path / "grown").folder
    assert json.loads((grown / "dopkit_state.json").read_text())["base"]["model"] == "base"
    assert json.loads((grown / "adapter_config.json").read_text())["base_model_name_or_path"] == str(adapted / "base")
    adding.add(grown, [str(tmp_path / "a2")])
    assert dopkit.load_recipe(grown / "dopkit_recipe.yaml").base_model.folder == adapted / "base"
    assert_the_full_merge(
        adapted,
        grown,
        recipe(tmp_path, "average", THREE).model_copy(
            update={"base_model": dopkit.load_recipe(grown / "dopkit_recipe.yaml").base_model}
        ),
    )


def test_an_alpha_of_its_own_stands_in_the_recipe(adapted: Path, tmp_path: Path) -> None:
    grown = merge(adapted, tmp_path / "grown", "[./m0, ./m1]", ("dop", {"alpha": 0.7}))
    adding.add(grown, [str(adapted / "m2")], parameters={"alpha": 0.3})
    dopkit.run(dopkit.load_recipe(grown / "dopkit_recipe.yaml"), tmp_path / "again")
    assert tiny.weights(tmp_path / "again") == tiny.weights(grown)


@pytest.mark.parametrize(
    ("parameters", "rank", "told"),
    [
        ({"history": "all"}, None, "the sums over the earlier models were not kept, so `history: last`"),
        ({}, 3, "what was merged before was cut to rank 3"),
        ({"history": "all"}, 3, "so `history: last`; what was merged before was cut to rank 3"),
    ],
)
def test_what_is_lost_is_told(
    parameters: dict[str, object], rank: int | None, told: str, adapted: Path, tmp_path: Path
) -> None:
    notes: list[str] = []

    class Listener(dopkit.Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    keys = {"rank": rank} if rank else {}
    grown = merge(adapted, tmp_path / "grown", "[./a0, ./a1]", ("dop", parameters), **keys)
    adding.add(grown, [str(adapted / "a2")], tmp_path / "added", progress=Listener())
    inexact = json.loads((tmp_path / "added" / "dopkit_state.json").read_text())["inexact"]
    assert told in inexact
    assert any(inexact in note for note in notes)
    assert inexact in (tmp_path / "added" / "README.md").read_text()
    again = adding.add(grown, [str(adapted / "a2")], tmp_path / "read-again", from_experts=True)
    whole = merge(adapted, tmp_path / "whole", THREE, ("dop", parameters), **keys)
    assert tiny.weights(again.folder) == tiny.weights(whole)
    assert json.loads((again.folder / "dopkit_state.json").read_text())["inexact"] is None


def test_lost_sums_of_some_modules(adapted: Path, tmp_path: Path) -> None:
    methods = [{"filter": "q_proj", "merge_method": "dop", "parameters": {"history": "all"}}]
    grown = merge(adapted, tmp_path / "grown", "[./a0, ./a1]", ("average", {}), methods=methods)
    adding.add(grown, [str(adapted / "a2")], tmp_path / "added")
    state = json.loads((tmp_path / "added" / "dopkit_state.json").read_text())
    assert "the sums over the earlier models were not kept" in state["inexact"]
    history = {"history": [{"filter": "q_proj", "value": "all"}, {"value": "last"}]}
    grown = merge(adapted, tmp_path / "filtered", "[./a0, ./a1]", ("dop", history))
    told = refusal(PlanError, grown, [str(adapted / "a2")])
    assert "history: all: the sums over the earlier adapters were not kept" in told
    adding.add(grown, [str(adapted / "a2")], from_experts=True)


def test_a_killed_one_goes_on(adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dopkit.adapting import modules

    grown = merge(adapted, tmp_path / "grown", "[./m0, ./m1]", ("dop", {}))
    before, real, calls = tiny.weights(grown), modules.products, [0]

    def breaks(*given: object) -> object:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(modules, "products", breaks)
    with pytest.raises(KeyboardInterrupt):
        adding.add(grown, [str(adapted / "m2")])
    assert tiny.weights(grown) == before
    result = adding.add(grown, [str(adapted / "m2")])
    assert calls[0] == 3 + 6 - 2
    assert result.receipt["run"]["resumed"]
    whole = merge(adapted, tmp_path / "whole", "[./m0, ./m1, ./m2]", ("dop", {}))
    assert tiny.weights(grown) == tiny.weights(whole)


# What is refused


def refusal(error: type[DopkitError], *arguments: object, **keys: object) -> str:
    with pytest.raises(error) as caught:
        adding.add(*arguments, **keys)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.fixture
def merged(adapted: Path, tmp_path: Path) -> Path:
    return merge(adapted, tmp_path / "merged", "[./a0, ./a1]", ("dop", {}))


def test_what_is_no_new_adapter(adapted: Path, tmp_path: Path, merged: Path) -> None:
    before = tiny.weights(merged)
    assert "is in " + str(merged) + " already, as base+a1" in refusal(PlanError, merged, [str(adapted / "a1")])
    shutil.copytree(adapted / "a1", tmp_path / "copy")
    assert "the same weights" in refusal(PlanError, merged, [str(tmp_path / "copy")])
    assert "already: its model 3" in refusal(RecipeError, merged, [str(adapted / "a2")] * 2)
    assert "is the merged model itself" in refusal(RecipeError, merged, [str(merged)])
    assert "base: is no adapter" in refusal(PlanError, merged, [str(adapted / "base")])
    make_adapter(adapted / "base", tmp_path / "dora", use_dora=True)
    assert "is a DoRA" in refusal(PlanError, merged, [str(tmp_path / "dora")])
    for options, name in ((Options(keep_state=True), "--keep-state"), (Options(save_steps=True), "--save-steps")):
        assert f"{name}: does not go with `output: adapter`" in refusal(
            PlanError, merged, [str(adapted / "a2")], options=options
        )
    assert tiny.weights(merged) == before
    assert not merged.with_name("merged.partial").exists()


def test_what_dopkit_did_not_make(adapted: Path, merged: Path) -> None:
    assert "holds no dopkit_receipt.json" in refusal(OutputError, adapted / "a0", [str(adapted / "a2")])
    (merged / "notes.txt").write_text("mine")
    assert "notes.txt" in refusal(OutputError, merged, [str(adapted / "a2")])
    (merged / "dopkit_state.json").unlink()
    assert "holds no dopkit_state.json" in refusal(OutputError, merged, [str(adapted / "a2")])


def test_a_base_that_has_changed(adapted: Path, tmp_path: Path) -> None:
    for name in ("base", "a0", "a1", "a2"):
        shutil.copytree(adapted / name, tmp_path / name)
    grown = merge(tmp_path, tmp_path / "grown", "[./a0, ./a1]", ("dop", {}))
    shutil.rmtree(tmp_path / "base")
    tiny.make_expert(adapted / "base", tmp_path / "base", seed=9)
    assert "its weights have changed" in refusal(PlanError, grown, [str(tmp_path / "a2")])


def test_what_was_trained_on_something_else_is_told(adapted: Path, tmp_path: Path, merged: Path) -> None:
    notes: list[str] = []

    class Listener(dopkit.Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    shutil.copytree(adapted / "a2", tmp_path / "a2")
    config = tmp_path / "a2" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "org/other"}))
    adding.add(merged, [str(tmp_path / "a2")], progress=Listener())
    (note,) = notes
    assert note.endswith("a2: it was trained on org/other and is applied to " + str(adapted / "base"))


def test_at_the_command_line(adapted: Path, merged: Path) -> None:
    plan = CliRunner().invoke(main, ["add", str(merged), str(adapted / "a2"), "--plan"])
    assert "after 2 models (base+a0, base+a1): from its weights" in plan.stdout
    done = CliRunner().invoke(main, ["add", str(merged), str(adapted / "a2")])
    assert done.exit_code == 0, done.output
    assert f"{merged} holds 3 models: " in done.stdout
    assert CliRunner().invoke(main, ["show", str(merged)]).stdout.count("/a") >= 3


@pytest.mark.filterwarnings(CLIENT_WARNING)
def test_on_the_hub(adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.chdir(tmp_path)
    with TestHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache", token=hub.token("org"))
        for name in ("base", "a0", "a1", "a2"):
            hub.create_repo(f"org/{name}", {})
            hub.add_folder(f"org/{name}", adapted / name)
        tiny.make_expert(adapted / "base", tmp_path / "strange", seed=7)
        hub.create_repo("org/strange", {})
        hub.add_folder("org/strange", tmp_path / "strange")
        text = "merge_method: dop\nbase_model: org/base\nmodels: [org/a0, org/a1]\noutput: adapter\n"
        push = Options(push=PushOptions("org/merged"))
        dopkit.run(dopkit.parse_recipe(text, name="merged"), tmp_path / "first", push)
        assert "stands on another base" in refusal(PlanError, "org/merged", ["org/strange+org/a2"])
        assert "already, as org/base+org/a1" in refusal(PlanError, "org/merged", ["org/a1"])
        result = adding.add("org/merged", ["org/a2"], tmp_path / "grown", Options(push=PushOptions()))
        assert result.pushed is not None
        assert not list((tmp_path / "cache").rglob("model*.safetensors"))
        merge(adapted, tmp_path / "whole", THREE, ("dop", {}))
        ours, theirs = applied(adapted, tmp_path / "grown"), applied(adapted, tmp_path / "whole")
        assert all(torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-6) for name in theirs)
        assert "already" in refusal(PlanError, "org/merged", ["org/a2"])
        assert hub.crashes == []
