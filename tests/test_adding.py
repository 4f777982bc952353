"""Models that grow: what ``add`` gives is what merging all at once gives, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

import dopkit
from dopkit import adding, steps
from dopkit.errors import DopkitError, OutputError, PlanError, RecipeError
from dopkit.preparing import Options

MakeRecipe = Callable[..., dopkit.Recipe]

# Methods that go on from the merged weights alone, in float32, to the last bit.
EXACT = {
    "average": ("average", {}),
    "dop": ("dop", {}),
    "dop adam": ("dop", {"solver": "adam", "num_steps": 3, "other": "half"}),
    "dop by count, base": ("dop", {"alpha": "by-count", "other": "base"}),
    "task_arithmetic": ("task_arithmetic", {"lambda": 0.4}),
    "magmax": ("magmax", {}),
    "nullspace": ("nullspace", {}),
}
# Those that need their state to be kept for that.
WITH_STATE = {
    "dop all": ("dop", {"history": "all"}),
    "dop all, norm": ("dop", {"history": "all", "scale": "norm"}),
    "dop, norm": ("dop", {"scale": "norm"}),
    "dop, scale": ("dop", {"scale": 1.5}),
    "opcm": ("opcm", {}),
    "ties": ("ties", {"density": 0.5}),
    "wudi": ("wudi", {}),
}


def run(recipe: dopkit.Recipe, out: Path, **options: object) -> dict[str, torch.Tensor]:
    dopkit.run(recipe, out, Options(**options))  # type: ignore[arg-type]
    return tiny.read(out)


def together(root: Path, out: Path, make_recipe: MakeRecipe, names: list[str], method: tuple, **keys: object) -> Path:
    dopkit.run(make_recipe(root, names, method[0], parameters=method[1], **keys), out)
    return out


@pytest.mark.parametrize("name", EXACT)
def test_a_split_merge_is_the_whole_merge(vit: Path, tmp_path: Path, make_recipe: MakeRecipe, name: str) -> None:
    """Merging A, B, C gives the bits of merging A, B and adding C."""
    whole = together(vit, tmp_path / "whole", make_recipe, ["e0", "e1", "e2"], EXACT[name])
    grown = together(vit, tmp_path / "grown", make_recipe, ["e0", "e1"], EXACT[name])
    result = adding.add(grown, [str(vit / "e2")])
    assert result.folder == grown.absolute()
    assert tiny.weights(grown) == tiny.weights(whole)


@pytest.mark.parametrize("name", {**EXACT, **WITH_STATE})
def test_a_kept_state_makes_any_dtype_exact(llama: Path, tmp_path: Path, make_recipe: MakeRecipe, name: str) -> None:
    """With the state kept, adding twice, or two at once, gives the bits of one merge, in bfloat16 and by any method."""
    method = {**EXACT, **WITH_STATE}[name]
    whole = together(llama, tmp_path / "whole", make_recipe, ["e0", "e1", "e2", "e3"], method)
    dopkit.run(
        make_recipe(llama, ["e0", "e1"], method[0], parameters=method[1]), tmp_path / "two", Options(keep_state=True)
    )
    both = [str(llama / "e2"), str(llama / "e3")]
    adding.add(tmp_path / "two", both[:1], tmp_path / "three", Options(keep_state=True))
    adding.add(tmp_path / "three", both[1:], tmp_path / "four")
    assert tiny.same(tiny.read(tmp_path / "four"), tiny.read(whole))
    assert not (tmp_path / "four" / "state").exists()
    adding.add(tmp_path / "two", both, tmp_path / "once")
    assert tiny.same(tiny.read(tmp_path / "once"), tiny.read(whole))


def test_bfloat16_is_within_one_rounding(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """Without the state, what was written in bfloat16 is what is gone on from: its rounding is all that differs."""
    whole = tiny.read(together(llama, tmp_path / "whole", make_recipe, ["e0", "e1", "e2"], ("average", {})))
    grown = together(llama, tmp_path / "grown", make_recipe, ["e0", "e1"], ("average", {}))
    two = tiny.read(grown)
    adding.add(grown, [str(llama / "e2")])
    for name, tensor in tiny.read(grown).items():
        error = (tensor.float() - whole[name].float()).abs()
        allowed = 2**-8 * two[name].float().abs() * 2 / 3 + 2**-7 * whole[name].float().abs()
        assert bool((error <= allowed).all()), name


@pytest.mark.parametrize("name", ["dop all", "ties", "wudi"])
def test_lost_sums_are_told(vit: Path, tmp_path: Path, make_recipe: MakeRecipe, name: str) -> None:
    """Without its sums a method goes on from the weights, and says so in the state, the card, and on the way."""
    method, told = WITH_STATE[name], []

    class Listener(dopkit.Progress):
        def note(self, text: str) -> None:
            told.append(text)

    grown = together(vit, tmp_path / "grown", make_recipe, ["e0", "e1"], method)
    adding.add(grown, [str(vit / "e2")], progress=Listener())
    state = json.loads((grown / "dopkit_state.json").read_text())
    assert state["inexact"] and len(state["models"]) == 3
    assert any(state["inexact"] in note for note in told)
    assert state["inexact"] in (grown / "README.md").read_text()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tiny.read(grown).values())


@pytest.mark.parametrize("name", ["dop all", "ties"])
def test_earlier_models_can_be_read_again(vit: Path, tmp_path: Path, make_recipe: MakeRecipe, name: str) -> None:
    """``from_experts`` gives the whole merge, whatever was kept."""
    whole = together(vit, tmp_path / "whole", make_recipe, ["e0", "e1", "e2"], WITH_STATE[name])
    grown = together(vit, tmp_path / "grown", make_recipe, ["e0", "e1"], WITH_STATE[name])
    adding.add(grown, [str(vit / "e2")], from_experts=True)
    assert tiny.weights(grown) == tiny.weights(whole)
    assert json.loads((grown / "dopkit_state.json").read_text())["inexact"] is None


def test_three_models_are_opened_whatever_came_before(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """The experts that went in may be gone."""
    for name in ("base", "e0", "e1", "e2"):
        shutil.copytree(vit / name, tmp_path / name)
    grown = together(tmp_path, tmp_path / "grown", make_recipe, ["e0", "e1"], ("dop", {}))
    for name in ("e0", "e1"):
        shutil.rmtree(tmp_path / name)
    result = adding.add(grown, [str(tmp_path / "e2")])
    listed = [Path(model["model"]).name for model in result.receipt["models"]]
    assert listed == ["e0", "e1", "e2"]
    recipe = dopkit.load_recipe(grown / "dopkit_recipe.yaml")
    assert [entry.model.folder for entry in recipe.models] == [tmp_path / name for name in ("e0", "e1", "e2")]


def test_the_recipe_of_a_grown_model_makes_it_again(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    grown = together(vit, tmp_path / "grown", make_recipe, ["e0", "e1"], ("dop", {"alpha": 0.7}))
    adding.add(grown, [str(vit / "e2")], parameters={"alpha": 0.3})
    dopkit.run(dopkit.load_recipe(grown / "dopkit_recipe.yaml"), tmp_path / "again")
    assert tiny.weights(tmp_path / "again") == tiny.weights(grown)


def test_another_folder_leaves_the_first_alone(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    first = together(vit, tmp_path / "first", make_recipe, ["e0", "e1"], ("dop", {}))
    before = {path.name: path.read_bytes() for path in first.iterdir() if path.is_file()}
    adding.add(first, [str(vit / "e2")], tmp_path / "second")
    assert {path.name: path.read_bytes() for path in first.iterdir() if path.is_file()} == before
    again = adding.add(first, [str(vit / "e2")], tmp_path / "second")
    assert again.already_there


def test_steps_go_on_being_kept(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """A grown model keeps what it was as a step, when steps are kept."""
    whole, grown = tmp_path / "whole", tmp_path / "grown"
    dopkit.run(make_recipe(vit, ["e0", "e1", "e2"]), whole, Options(save_steps=True))
    dopkit.run(make_recipe(vit, ["e0", "e1"]), grown, Options(save_steps=True))
    adding.add(grown, [str(vit / "e2")])
    assert steps.saved(grown) == steps.saved(whole) == [1, 2]
    for step in ("01", "02"):
        assert tiny.weights(grown / "steps" / step) == tiny.weights(whole / "steps" / step)
        names = {path.name for path in (grown / "steps" / step).iterdir()}
        assert names == {path.name for path in (whole / "steps" / step).iterdir()}


# What is refused


def refusal(error: type[DopkitError], *arguments: object, **keys: object) -> str:
    with pytest.raises(error) as caught:
        adding.add(*arguments, **keys)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.fixture
def merged(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> Path:
    return together(vit, tmp_path / "merged", make_recipe, ["e0", "e1"], ("dop", {}))


def test_a_model_that_is_in_it(vit: Path, tmp_path: Path, merged: Path) -> None:
    assert "is in " + str(merged) + " already: its model 2" in refusal(RecipeError, merged, [str(vit / "e1")])
    twice = [str(vit / "e2"), str(vit / "e2")]
    assert "already: its model 3" in refusal(RecipeError, merged, twice)
    shutil.copytree(vit / "e1", tmp_path / "copy")
    assert "the same weights" in refusal(PlanError, merged, [str(tmp_path / "copy")])
    assert "no model is named that is to be added" in refusal(PlanError, merged, [])


def test_the_base_where_the_method_leaves_it_out(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """Its recipe would name a model that is not in the state, and nothing could be added any more."""
    merged = together(vit, tmp_path / "merged", make_recipe, ["e0", "e1"], ("task_arithmetic", {"lambda": 0.4}))
    said = refusal(PlanError, merged, [str(vit / "base")])
    assert "is the base: its task vector is zero, and task_arithmetic leaves it out" in said
    mean = together(vit, tmp_path / "mean", make_recipe, ["e0", "e1"], ("average", {}))
    adding.add(mean, [str(vit / "base")])
    adding.add(mean, [str(vit / "e2")])


def test_a_model_of_another_base(vit: Path, llama: Path, tmp_path: Path, merged: Path) -> None:
    """Of another architecture, by its headers; of another training, by its weights."""
    assert "was not fine-tuned from" in refusal(PlanError, merged, [str(llama / "e0")])

    def fresh(tensors: tiny.Tensors) -> tiny.Tensors:
        generator = torch.Generator().manual_seed(7)
        return {name: 0.02 * torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}

    tiny.edit(vit / "base", tmp_path / "stranger", fresh)
    before = tiny.weights(merged)
    assert "its weights are others (cosine" in refusal(PlanError, merged, [str(tmp_path / "stranger")])
    assert tiny.weights(merged) == before
    assert not merged.with_name("merged.partial").exists()


def test_a_base_that_has_changed(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    for name in ("base", "e0", "e1", "e2"):
        shutil.copytree(vit / name, tmp_path / name)
    grown = together(tmp_path, tmp_path / "grown", make_recipe, ["e0", "e1"], ("dop", {}))
    shutil.rmtree(tmp_path / "base")
    tiny.make_expert(vit / "base", tmp_path / "base", seed=9)
    assert "its weights have changed" in refusal(PlanError, grown, [str(tmp_path / "e2")])


def test_a_folder_that_dopkit_did_not_make(vit: Path, tmp_path: Path, merged: Path) -> None:
    assert "holds no dopkit_receipt.json" in refusal(OutputError, vit / "base", [str(vit / "e2")])
    (merged / "dopkit_state.json").unlink()
    assert "holds no dopkit_state.json" in refusal(OutputError, merged, [str(vit / "e2")])
    assert "there is no folder" in refusal(OutputError, str(tmp_path / "nowhere"), [str(vit / "e2")])


@pytest.mark.parametrize("change", [{"layout": 2}, {"models": []}, {"scale": "big"}, {"scale": 0}, {"norms": [-1]}])
def test_a_damaged_state(vit: Path, merged: Path, change: dict[str, object]) -> None:
    path = merged / "dopkit_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert "is damaged" in refusal(OutputError, merged, [str(vit / "e2")])


def test_a_state_of_another_merge(vit: Path, merged: Path) -> None:
    path = merged / "dopkit_state.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"models": data["models"][:1]}))
    assert "is not of this merge" in refusal(OutputError, merged, [str(vit / "e2")])


@pytest.mark.parametrize(
    ("given", "said"), [({"lr": 1.0}, "lr: is no parameter of a single model"), ({"alpha": 7}, "not between 0 and 1")]
)
def test_parameters_that_are_none(vit: Path, merged: Path, given: dict[str, float], said: str) -> None:
    assert said in refusal(RecipeError, merged, [str(vit / "e2")], parameters=given)


# Steps and state


@pytest.mark.parametrize("name", {**EXACT, **WITH_STATE})
def test_every_step_is_a_model(llama: Path, tmp_path: Path, make_recipe: MakeRecipe, name: str) -> None:
    """The model kept after t models is the merge of the first t."""
    method = {**EXACT, **WITH_STATE}[name]
    out = tmp_path / "out"
    recipe = make_recipe(llama, ["e0", "e1", "e2"], method[0], parameters=method[1])
    dopkit.run(recipe, out, Options(save_steps=True))
    assert steps.saved(out) == [1, 2]
    for count in (1, 2):
        alone = together(llama, tmp_path / f"alone{count}", make_recipe, ["e0", "e1", "e2"][:count], method)
        kept = out / "steps" / f"{count:02d}"
        assert tiny.same(tiny.read(kept), tiny.read(alone)), count
        assert (kept / "config.json").read_bytes() == (out / "config.json").read_bytes()
        assert (kept / "tokenizer.json").exists()


def test_the_plan_tells_what_steps_and_state_take(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(llama, ["e0", "e1", "e2"], "dop", parameters={"history": "all"})
    alone = dopkit.plan(recipe, tmp_path / "out")
    made = dopkit.plan(recipe, tmp_path / "out", Options(save_steps=True, keep_state=True))
    assert made.disk_bytes > 3 * made.output_bytes > 3 * alone.disk_bytes - 1
    dopkit.run(recipe, tmp_path / "out", Options(save_steps=True, keep_state=True))
    files = list((tmp_path / "out").rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) == made.disk_bytes
    kept = load_file(tmp_path / "out" / "state" / "model.safetensors")
    assert any(tensor.dtype == torch.float64 for tensor in kept.values())


def test_what_was_not_kept_is_asked_for_again(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(vit, ["e0", "e1"])
    dopkit.run(recipe, tmp_path / "out")
    for wanted, said in ((Options(save_steps=True), "earlier steps"), (Options(keep_state=True), "state of its folds")):
        with pytest.raises(OutputError, match=said):
            dopkit.run(recipe, tmp_path / "out", wanted)
