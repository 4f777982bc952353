"""`merge_method: fisher` in whole runs: files beside the models, what is refused of them, growing, the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from click.testing import CliRunner
from hubserver import CLIENT_WARNING, TestHub, connect
from safetensors.torch import load_file, save_file
from stopping import Stopped, stop_after

import dopkit
from dopkit import adding
from dopkit.cli import main
from dopkit.errors import DopkitError, MergeError, PlanError, RecipeError
from dopkit.preparing import Options

Change = Callable[[tiny.Tensors], tiny.Tensors]


def make_fishers(models: Path, folder: Path) -> Path:
    """``f0.safetensors`` ... for the experts of ``models``, of very different sizes."""
    folder.mkdir(exist_ok=True)
    for index in range(4):
        generator = torch.Generator().manual_seed(100 + index)
        tensors = tiny.read(models / f"e{index}")
        fisher = {name: torch.rand(tensor.shape, generator=generator) / 10**index for name, tensor in tensors.items()}
        save_file(fisher, folder / f"f{index}.safetensors")
    return folder


@pytest.fixture
def fishers(llama: Path, tmp_path: Path) -> Path:
    return make_fishers(llama, tmp_path / "fishers")


def recipe(models: Path, fishers: Path, count: int = 3, **keys: Any) -> dopkit.Recipe:
    entries = [{"model": f"{models}/e{index}", "parameters": {"fisher": f"{fishers}/f{index}.safetensors"}}
               for index in range(count)]  # fmt: skip
    return dopkit.parse_recipe(yaml.safe_dump({"merge_method": "fisher", "models": entries, **keys}))


def naive(models: list[tiny.Tensors], fishers: list[tiny.Tensors], normalize: bool = True) -> tiny.Tensors:
    """The published formula on whole models, in float64."""
    sizes = [torch.cat([tensor.double().flatten() for tensor in fisher.values()]).square().mean().sqrt()
             for fisher in fishers]  # fmt: skip
    merged = {}
    for name in models[0]:
        parts = [
            fisher[name].double() / (size if normalize else 1) for fisher, size in zip(fishers, sizes, strict=True)
        ]
        parts = [part.clamp(min=1e-6) for part in parts]
        total = sum(part * model[name].double() for part, model in zip(parts, models, strict=True))
        merged[name] = (total / sum(parts)).float()
    return merged


def read_all(models: Path, fishers: Path, count: int = 3) -> tuple[list[tiny.Tensors], list[tiny.Tensors]]:
    return [tiny.read(models / f"e{index}") for index in range(count)], [
        load_file(fishers / f"f{index}.safetensors") for index in range(count)
    ]


def close(found: tiny.Tensors, want: tiny.Tensors) -> bool:
    return found.keys() == want.keys() and all(
        torch.allclose(found[name], want[name], rtol=1e-6, atol=1e-6) for name in want
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_it_is_the_formula(llama: Path, fishers: Path, tmp_path: Path, normalize: bool) -> None:
    made = dopkit.run(recipe(llama, fishers, dtype="float32", parameters={"normalize": normalize}), tmp_path / "out")
    want = naive(*read_all(llama, fishers), normalize=normalize)
    assert close(tiny.read(tmp_path / "out"), want)
    other = naive(*read_all(llama, fishers), normalize=not normalize)
    assert not close(tiny.read(tmp_path / "out"), other)
    assert [(one["of"], one["parameter"]) for one in made.receipt["companions"]] == [
        (f"{llama}/e{index}", "fisher") for index in range(3)
    ]


def test_the_bytes_depend_on_nothing_else(llama: Path, fishers: Path, tmp_path: Path) -> None:
    """Again, in small shards, and from the recipe that lies in the result: the same."""
    dopkit.run(recipe(llama, fishers), tmp_path / "one")
    dopkit.run(recipe(llama, fishers), tmp_path / "two")
    assert tiny.weights(tmp_path / "one") == tiny.weights(tmp_path / "two")
    dopkit.run(recipe(llama, fishers), tmp_path / "cut", Options(max_shard_size=6000))
    dopkit.run(dopkit.load_recipe(tmp_path / "one" / "dopkit_recipe.yaml"), tmp_path / "again")
    for name in ("cut", "again"):
        assert tiny.same(tiny.read(tmp_path / name), tiny.read(tmp_path / "one"))


@pytest.mark.parametrize("tensors", [0, 5, 20])
def test_a_rerun_continues(
    llama: Path, fishers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: int
) -> None:
    options = Options(keep_state=True, save_steps=True)
    dopkit.run(recipe(llama, fishers), tmp_path / "whole", options)
    with monkeypatch.context() as patch:
        stop_after(patch, tensors)
        with pytest.raises(Stopped):
            dopkit.run(recipe(llama, fishers), tmp_path / "out", options)
    dopkit.run(recipe(llama, fishers), tmp_path / "out", options)
    for folder in ("", "steps/01", "steps/02", "state"):
        assert tiny.weights(tmp_path / "out" / folder) == tiny.weights(tmp_path / "whole" / folder), folder


def test_a_fisher_that_changed_is_another_merge(llama: Path, fishers: Path, tmp_path: Path) -> None:
    dopkit.run(recipe(llama, fishers), tmp_path / "out")
    assert dopkit.run(recipe(llama, fishers), tmp_path / "out").already_there
    change(fishers / "f1.safetensors", lambda tensors: {name: tensor + 1 for name, tensor in tensors.items()})
    with pytest.raises(DopkitError, match="output"):
        dopkit.run(recipe(llama, fishers), tmp_path / "out")


def test_more_models_need_no_more_memory(llama: Path, fishers: Path, tmp_path: Path) -> None:
    entries = []
    for index in range(12):
        model = tmp_path / f"m{index}"
        model.symlink_to(llama / f"e{index % 4}")
        entries.append({"model": str(model), "parameters": {"fisher": str(fishers / f"f{index % 4}.safetensors")}})
    needs = []
    for count in (3, 12):
        found = dopkit.parse_recipe(yaml.safe_dump({"merge_method": "fisher", "models": entries[:count]}))
        made = dopkit.plan(found, tmp_path / "out")
        needs.append(made.memory_bytes - made.program_bytes)
    assert needs[1] < needs[0] + 1_000_000  # one block of each


def test_a_plan_shows_what_is_read_beside_the_models(
    llama: Path, fishers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(recipe(llama, fishers, 2).to_yaml(tmp_path))
    shown = CliRunner().invoke(main, ["plan", "r.yaml"]).output
    assert re.search(r"fisher: \S*f0.safetensors +26.9 kB\n", shown) and "fisher       14" in shown
    data = json.loads(CliRunner().invoke(main, ["plan", "r.yaml", "--json"]).output)
    assert [Path(own["fisher"]).name for own in data["companions"]] == ["f0.safetensors", "f1.safetensors"]


# What lies beside a model


def change(file: Path, how: Change) -> None:
    save_file(how(load_file(file)), file)


def test_names_may_be_the_models_own_the_classes_or_canonical(vit: Path, tmp_path: Path) -> None:
    from transformers import ViTModel

    model = ViTModel.from_pretrained(vit / "e0", add_pooling_layer=False)
    inside = {name: torch.rand(parameter.shape) for name, parameter in model.named_parameters()}
    save_file(inside, tmp_path / "inside.safetensors")
    own = tiny.read(vit / "e0")
    plan = dopkit.plan(one_recipe(vit / "e0", tmp_path / "inside.safetensors"), tmp_path / "out")
    beside = {job.inputs[0].name: job.inputs[0].companions[0] for job in plan.jobs}
    assert beside.keys() == own.keys() and set(beside.values()) == inside.keys()
    assert beside != {name: name for name in own}, "transformers renames this model on loading"
    canonical = {job.canonical: inside[job.inputs[0].companions[0]] for job in plan.jobs}
    save_file(canonical, tmp_path / "canonical.safetensors")
    dopkit.run(one_recipe(vit / "e0", tmp_path / "canonical.safetensors"), tmp_path / "merged")
    assert tiny.same(tiny.read(tmp_path / "merged"), own)


def one_recipe(model: Path, fisher: Path | str, **keys: Any) -> dopkit.Recipe:
    entry = {"model": str(model), "parameters": {"fisher": str(fisher)}}
    return dopkit.parse_recipe(yaml.safe_dump({"merge_method": "fisher", "models": [entry], **keys}))


def test_a_folder_with_shards_or_an_optimizers_moments(llama: Path, fishers: Path, tmp_path: Path) -> None:
    """Under every name that is looked for, the same merge."""
    dopkit.run(recipe(llama, fishers, 2), tmp_path / "want")
    tensors = load_file(fishers / "f0.safetensors")
    names = sorted(tensors)
    shards, whole, moments = (tmp_path / name for name in ("shards", "whole", "moments"))
    for folder in (shards, whole, moments):
        folder.mkdir()
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, shards / f"fisher-{number}.safetensors")
        weight_map |= dict.fromkeys(part, f"fisher-{number}.safetensors")
    (shards / "fisher.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    save_file(tensors, whole / "fisher.safetensors")
    state = {f"state.{name}.exp_avg_sq": tensor for name, tensor in tensors.items()}
    state |= {f"state.{name}.exp_avg": -tensor for name, tensor in tensors.items()}
    save_file(state, moments / "optimizer.safetensors")
    for beside in (shards, whole, moments / "optimizer.safetensors"):
        second = {"model": str(llama / "e1"), "parameters": {"fisher": str(fishers / "f1.safetensors")}}
        first = {"model": str(llama / "e0"), "parameters": {"fisher": str(beside)}}
        text = yaml.safe_dump({"merge_method": "fisher", "models": [first, second]})
        dopkit.run(dopkit.parse_recipe(text), tmp_path / f"out-{beside.parent.name}-{beside.name}")
        assert tiny.weights(tmp_path / f"out-{beside.parent.name}-{beside.name}") == tiny.weights(tmp_path / "want")


def refused(found: dopkit.Recipe, out: Path, kind: type[DopkitError] = PlanError) -> str:
    with pytest.raises(kind) as caught:
        dopkit.run(found, out)
    assert not out.exists()
    return str(caught.value)


NORM = "model.layers.0.input_layernorm.weight"


def test_what_a_file_lacks_is_told_with_a_remedy_that_works(llama: Path, fishers: Path, tmp_path: Path) -> None:
    def without_norms(tensors: tiny.Tensors) -> tiny.Tensors:
        return {name: tensor for name, tensor in tensors.items() if "norm" not in name}

    change(fishers / "f1.safetensors", without_norms)
    message = refused(recipe(llama, fishers), tmp_path / "out")
    assert "f1.safetensors: lacks 5 tensors of" in message and "layers.0.input_layernorm.weight" in message
    assert "merge_method: average" in message and "f0" not in message
    override = {"filter": "norm", "merge_method": "average"}
    plan = dopkit.run(recipe(llama, fishers, methods=[override]), tmp_path / "out").plan
    assert plan.rules()["mean"][0] == 5 and plan.rules()["fisher"][0] == 16


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda tensors: {**tensors, NORM: torch.ones(3)}, f"does not fit .*: {NORM} is 3, in the model 16"),
        (lambda tensors: {**tensors, NORM: torch.ones(16, dtype=torch.int64)}, f"{NORM} is I64, not floating-point"),
    ],
)
def test_what_does_not_fit_is_told(llama: Path, fishers: Path, tmp_path: Path, how: Change, message: str) -> None:
    change(fishers / "f1.safetensors", how)
    assert re.search(message, refused(recipe(llama, fishers), tmp_path / "out"))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("value", "message"), [(-1.0, "1 value that are negative"), (float("nan"), "NaN or infinite"),
                                                (float("inf"), "NaN or infinite")])  # fmt: skip
def test_a_value_that_counts_nothing_is_told(
    llama: Path, fishers: Path, tmp_path: Path, normalize: bool, value: float, message: str
) -> None:
    def spoil(tensors: tiny.Tensors) -> tiny.Tensors:
        tensors[NORM][3] = value
        return tensors

    change(fishers / "f2.safetensors", spoil)
    found = recipe(llama, fishers, parameters={"normalize": normalize})
    told = refused(found, tmp_path / "out", PlanError if normalize else MergeError)
    assert (tmp_path / "out.partial").exists() is not normalize
    assert "f2.safetensors" in told and NORM in told and message in told


def test_a_fisher_of_zeros_is_told(llama: Path, fishers: Path, tmp_path: Path) -> None:
    change(fishers / "f1.safetensors", lambda tensors: {name: 0 * tensor for name, tensor in tensors.items()})
    assert "f1.safetensors: its fisher is zero everywhere" in refused(recipe(llama, fishers), tmp_path / "out")


def test_weights_are_never_taken_for_it(llama: Path, tmp_path: Path) -> None:
    """A model's own folder holds no Fisher, and its weights, named on purpose, are negative."""
    message = refused(one_recipe(llama / "e0", llama / "e0"), tmp_path / "out")
    assert "holds no fisher" in message and "fisher.safetensors" in message
    save_file(tiny.read(llama / "e0"), tmp_path / "w.safetensors")
    message = refused(one_recipe(llama / "e0", tmp_path / "w.safetensors"), tmp_path / "out")
    assert "negative" in message and "other tensors" in message
    assert "there is no such file" in refused(one_recipe(llama / "e0", tmp_path / "x.safetensors"), tmp_path / "out")


RECIPES = [
    ("models: [./a]", "'fisher' is missing"),
    ("models: [./a]\nparameters: {fisher: ./f}", "each model has a fisher of its own"),
    ("models: [{model: ./a, parameters: {fisher: f.safetensors}}]", "write ./f.safetensors for a file"),
    ("models: [{model: ./a, parameters: {fisher: u/a+u/b}}]", "names an adapter"),
    ("models: [{model: ./a, parameters: {fisher: [{filter: x, value: ./f}]}}]", "neither filters nor a gradient"),
    ("slices: [{sources: [{model: ./a, layer_range: [0, 1], parameters: {fisher: ./f}}]}]", "only under 'models'"),
]


@pytest.mark.parametrize(("text", "message"), RECIPES)
def test_recipes_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        dopkit.parse_recipe(f"merge_method: fisher\n{text}\n")
    assert message in str(caught.value)


def test_it_is_no_method_for_some_tensors_only() -> None:
    text = "merge_method: average\nmodels: [./a]\nmethods: [{filter: x, merge_method: fisher}]\n"
    with pytest.raises(RecipeError) as caught:
        dopkit.parse_recipe(text)
    assert "make it the recipe's method" in str(caught.value)


# Growing


def test_with_its_state_it_grows_to_the_same_bits(llama: Path, fishers: Path, tmp_path: Path) -> None:
    dopkit.run(recipe(llama, fishers, 3), tmp_path / "whole")
    dopkit.run(recipe(llama, fishers, 2), tmp_path / "out", Options(keep_state=True))
    given = {"fisher": str(fishers / "f2.safetensors")}
    grown = adding.add(tmp_path / "out", [str(llama / "e2")], parameters=given)
    assert tiny.weights(tmp_path / "out") == tiny.weights(tmp_path / "whole")
    assert [Path(one["model"]).name for one in grown.receipt["companions"]] == [f"f{n}.safetensors" for n in range(3)]
    again = dopkit.load_recipe(tmp_path / "out" / "dopkit_recipe.yaml")
    assert [entry.companions["fisher"].name for entry in again.models] == [f"f{n}.safetensors" for n in range(3)]


def test_without_its_state_it_grows_from_its_models_alone(llama: Path, fishers: Path, tmp_path: Path) -> None:
    dopkit.run(recipe(llama, fishers, 2), tmp_path / "out")
    given = {"fisher": str(fishers / "f2.safetensors")}
    with pytest.raises(PlanError) as caught:
        adding.add(tmp_path / "out", [str(llama / "e2")], parameters=given)
    assert "--from-experts" in str(caught.value) and "--keep-state" in str(caught.value)
    adding.add(tmp_path / "out", [str(llama / "e2")], parameters=given, from_experts=True)
    dopkit.run(recipe(llama, fishers, 3), tmp_path / "whole")
    assert tiny.weights(tmp_path / "out") == tiny.weights(tmp_path / "whole")


def test_every_model_that_is_added_needs_one_of_its_own(llama: Path, fishers: Path, tmp_path: Path) -> None:
    dopkit.run(recipe(llama, fishers, 2), tmp_path / "out", Options(keep_state=True))
    with pytest.raises(RecipeError, match="--set fisher="):
        adding.add(tmp_path / "out", [str(llama / "e2")])
    given = {"fisher": str(fishers / "f2.safetensors")}
    with pytest.raises(RecipeError, match="one model after another"):
        adding.add(tmp_path / "out", [str(llama / "e2"), str(llama / "e3")], parameters=given)


# The Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llama: Path, fishers: Path) -> Iterator[TestHub]:
    """Models whose repositories hold their Fisher as well."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with TestHub() as server:
        connect(monkeypatch, server, tmp_path / "cache", token=server.token("org"))
        for index in range(2):
            server.add_folder(f"org/e{index}", llama / f"e{index}")
            server.upload(f"org/e{index}", {"fisher.safetensors": fishers / f"f{index}.safetensors"})
        yield server
        assert server.crashes == []


HUB = """\
merge_method: fisher
models:
  - {model: org/e0, parameters: {fisher: org/e0}}
  - {model: org/e1, parameters: {fisher: org/e1}}
"""


@pytest.mark.filterwarnings(CLIENT_WARNING)
@pytest.mark.parametrize("stream", [False, True])
def test_it_may_lie_in_the_models_own_repository(
    hub: TestHub, llama: Path, fishers: Path, tmp_path: Path, stream: bool
) -> None:
    found = dopkit.parse_recipe(HUB)
    plan = dopkit.plan(found, tmp_path / "out", Options(stream=stream))
    sizes = [sum(path.stat().st_size for path in (llama / f"e{index}").glob("*.safetensors")) for index in range(2)]
    if not stream:
        fisher = sum((fishers / f"f{index}.safetensors").stat().st_size for index in range(2))
        assert plan.download_bytes == sum(sizes) + fisher
    made = dopkit.run(found, tmp_path / "out", Options(stream=stream))
    dopkit.run(recipe(llama, fishers, 2), tmp_path / "want")
    assert tiny.weights(tmp_path / "out") == tiny.weights(tmp_path / "want")
    written = yaml.safe_load((tmp_path / "out" / "dopkit_recipe.yaml").read_text())
    commit = hub.commit("org/e0").sha
    assert written["models"][0] == {"model": f"org/e0@{commit}", "parameters": {"fisher": f"org/e0@{commit}"}}
    assert made.receipt["companions"][1]["identity"] == hub.commit("org/e1").sha
    assert bool(list((tmp_path / "cache").rglob("*.safetensors"))) is not stream
