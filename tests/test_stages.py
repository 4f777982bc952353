"""Recipes of several documents: the result is what merging one stage after another through the disk gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import adapters
import pytest
import tiny
import torch
import wordy
import yaml
from hubserver import CLIENT_WARNING, TestHub, connect
from stopping import Stopped, stop_after

import dopkit
from dopkit import hub as hub_room
from dopkit import hub_recipes
from dopkit.engine import Engine, pieces
from dopkit.engine.stage import StageCheckpoint
from dopkit.errors import MergeError, OutputError, PlanError, RecipeError
from dopkit.measure import resident_bytes
from dopkit.methods.dop import Dop
from dopkit.methods.fold import Context
from dopkit.planning import jobs, streaming
from dopkit.planning.buffers import Buffers
from dopkit.recipe.reading import load_recipe

Document = dict[str, Any]

ADD = {"merge_method": "task_arithmetic", "base_model": "./base", "parameters": {"weight": 0.7}}
TIES = {"merge_method": "ties", "base_model": "./base", "parameters": {"weight": 0.6, "density": 0.4}}
DARE = {"merge_method": "dare_ties", "base_model": "./base", "parameters": {"weight": 0.6, "density": 0.5}, "seed": 3}
DOP = {"merge_method": "dop", "base_model": "./base"}
LINEAR = {"merge_method": "linear", "parameters": {"weight": 0.5}}


def layers(*sources: tuple[str, int, int]) -> list[Document]:
    return [{"sources": [{"model": model, "layer_range": [start, stop]}]} for model, start, stop in sources]


CASES: dict[str, list[Document]] = {
    "elementwise": [{"name": "a", "models": ["./e0", "./e1"], **ADD}, {"models": ["a", "./e2"], **LINEAR}],
    "whole tensors": [
        {"name": "a", "models": ["./e0", "./e1"], **TIES},
        {"name": "b", "models": ["a", "./e2"], **ADD},
        {"models": ["a", "b", "./e3"], **TIES},
    ],
    "matrices": [{"name": "a", "models": ["./e0", "./e1"], **DOP}, {"models": ["a", "./e2"], **DOP}],
    "draws": [{"name": "a", "models": ["./e0", "./e1"], **DARE}, {"models": ["a", "./e2"], **DARE}],
    "other dtypes": [
        {"name": "a", "models": ["./e0", "./e1"], **ADD, "dtype": "float32"},
        {"name": "b", "models": ["a", "./e2"], **TIES, "out_dtype": "float16"},
        {"models": ["a", "b"], **LINEAR, "dtype": "bfloat16"},
    ],
    "a stage as base": [
        {"name": "a", "models": ["./e0", "./e1"], **LINEAR},
        {"name": "b", "models": ["./e2", "./e3"], **ADD, "base_model": "a"},
        {"models": ["b", "./e0"], **TIES, "base_model": "a"},
    ],
    "three deep, each used twice": [
        {"name": "a", "models": ["./e0", "./e1"], **ADD},
        {"name": "b", "models": ["a", "./e2"], **DOP, "base_model": "a"},
        {"name": "c", "models": ["a", "b"], **LINEAR},
        {"models": ["b", "c"], **DARE, "base_model": "a"},
    ],
    "slices of stages": [
        {"name": "a", "models": ["./e0", "./e1"], **TIES},
        {"name": "b", "merge_method": "passthrough", "slices": layers(("a", 0, 2), ("./e2", 1, 2))},
        {"merge_method": "passthrough", "slices": layers(("b", 0, 3), ("b", 1, 3), ("a", 0, 1))},
    ],
    "a scale, and a copy": [
        {"name": "a", "models": ["./e0", "./e1"], **DOP, "parameters": {"scale": 0.8}, "copy": "*norm.weight"},
        {"models": ["a", "./e2"], **TIES, "copy": "embed_tokens*"},
    ],
    "shuffled": [
        {"name": "a", "models": ["./e0", "./e1", "./e2"], **DOP, "order": "shuffle", "seed": 5},
        {"models": ["a", "./e3"], **DOP},
    ],
}


def recipe_of(documents: list[Document], root: Path) -> dopkit.Recipe:
    return dopkit.parse_recipe(yaml.safe_dump_all(documents), "merged", root)


def one_by_one(documents: list[Document], root: Path, folder: Path, options: dopkit.Options | None = None) -> Path:
    """The same through the disk: every stage a merge of its own, in the order of the file. The result's folder."""
    done: dict[str, str] = {}

    def placed(value: Any) -> Any:
        if isinstance(value, list):
            return list(map(placed, value))
        if isinstance(value, dict):
            return {key: placed(one) for key, one in value.items()}
        return done.get(value, value) if isinstance(value, str) else value

    for document in documents:
        name = document.get("name", "result")
        kept = {key: value for key, value in document.items() if key != "name"}
        found = dopkit.run(dopkit.parse_recipe(yaml.safe_dump(placed(kept)), name, root), folder / name, options)
        done[name] = str(found.folder)
    return Path(done["result"])


def files(folder: Path) -> Mapping[str, bytes]:
    """Weights and config."""
    return {**tiny.weights(folder), "config.json": (folder / "config.json").read_bytes()}


@pytest.mark.parametrize("case", CASES)
def test_the_bytes_are_those_of_one_merge_after_another(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr(jobs, "BLOCK_ELEMENTS", 64)  # blocks of a few rows
    options = dopkit.Options(max_shard_size=6000)
    expected = one_by_one(CASES[case], llama, tmp_path / "disk", options)
    result = dopkit.run(recipe_of(CASES[case], llama), tmp_path / "out", options)
    assert files(tmp_path / "out") == files(expected)
    assert (tmp_path / "out" / "tokenizer.json").exists()
    again = dopkit.run(load_recipe(result.folder / "dopkit_recipe.yaml"), tmp_path / "again", options)
    assert files(tmp_path / "again") == files(expected)
    assert [stage["name"] for stage in again.receipt["stages"]] == [one["name"] for one in CASES[case] if "name" in one]


def test_an_adapter_on_a_stage(llama: Path, tmp_path: Path) -> None:
    for name in ("base", "e0", "e1"):
        shutil.copytree(llama / name, tmp_path / name)
    adapters.make_adapter(tmp_path / "base", tmp_path / "lora")
    stage = {"name": "a", "models": ["./e0", "./e1"], **ADD}
    documents = [stage, {"models": ["./e0", "./lora"], **TIES, "base_model": "a"}]
    expected = one_by_one(documents, tmp_path, tmp_path / "disk")
    dopkit.run(recipe_of(documents, tmp_path), tmp_path / "out")
    assert files(tmp_path / "out") == files(expected)
    documents[1] = {"models": ["./e0", "a+./lora"], **TIES}
    mixed = dopkit.run(recipe_of(documents, tmp_path), tmp_path / "mixed")
    names = {source.ref.name for source in mixed.plan.models}
    assert names == {"e0", "a+lora"} and "stage `a` +" in (tmp_path / "mixed" / "README.md").read_text()


def wordy_documents(root: Path) -> list[Document]:
    """A stage that unites tokenizers, and a result that unites it with another one; the models are made in ``root``."""
    base = wordy.make(root / "base", 0, added={"<x>": False})
    tiny.make_expert(base, root / "e0", seed=1)
    tiny.make_expert(wordy.make(root / "more", 1, added={"<x>": False, "<y>": False}), root / "e1", seed=2)
    tiny.make_expert(wordy.make(root / "other", 2, added={"<z>": True}), root / "e2", seed=3)
    return [
        {"name": "a", "models": ["./e0", "./e1"], **TIES, "tokenizer": "union", "chat_template": "chatml"},
        {"models": ["a", "./e2"], **LINEAR, "tokenizer": "union"},
    ]


def test_other_tokens_in_a_stage_and_around_it(tmp_path: Path) -> None:
    """The rows of a union, in a stage and in the result: of tensors that a stage makes as well."""
    documents = wordy_documents(tmp_path)
    expected = one_by_one(documents, tmp_path, tmp_path / "disk")
    dopkit.run(recipe_of(documents, tmp_path), tmp_path / "out")
    assert files(tmp_path / "out") == files(expected)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (expected / file).read_bytes(), file
    documents[1]["tokenizer"] = "a"
    expected = one_by_one(documents, tmp_path, tmp_path / "again")
    dopkit.run(recipe_of(documents, tmp_path), tmp_path / "named")
    assert files(tmp_path / "named") == files(expected)


# Reading


def stage_in_hand(recipe: dopkit.Recipe, monkeypatch: pytest.MonkeyPatch, out: Path) -> list[StageCheckpoint]:
    """The stages of a recipe, caught where the values of their inputs are compared."""
    caught: list[StageCheckpoint] = []
    with monkeypatch.context() as patch:
        patch.setattr(
            "dopkit.pipeline.compare_values", lambda prepared, related=False: caught.extend(prepared.sources.stages)
        )
        dopkit.plan(recipe, out)
    return caught


@pytest.mark.parametrize("method", [ADD, TIES, DOP])
def test_any_rows_are_those_of_the_whole(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Document
) -> None:
    monkeypatch.setattr(jobs, "BLOCK_ELEMENTS", 48)  # three rows of 16
    documents = [{"name": "a", "models": ["./e0", "./e1"], **method}, {"models": ["a", "./e2"], **LINEAR}]
    expected = tiny.read(one_by_one([{**documents[0], "name": "result"}], llama, tmp_path))
    (stage,) = stage_in_hand(recipe_of(documents, llama), monkeypatch, tmp_path / "out")
    assert stage.specs.keys() == expected.keys()
    for name, tensor in expected.items():
        assert stage.specs[name].shape == tuple(tensor.shape)
        for rows in (
            None,
            (0, 1),
            (1, 2),
            (2, 7),
            (5, 5),
            (0, tensor.shape[0]),
            (tensor.shape[0] - 1, tensor.shape[0]),
        ):
            part = stage.read(name, rows)
            assert torch.equal(part, tensor if rows is None else tensor[slice(*rows)]), (name, rows)
            part.zero_()  # the caller's own
    with pytest.raises(IndexError, match="16 rows; 0 to 17"):
        stage.read("model.norm.weight", (0, 17))


def test_a_part_is_merged_once_for_all_who_read_it(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged: list[tuple[str, str, tuple[int, int]]] = []
    merge = StageCheckpoint._merge

    def counting(self: StageCheckpoint, job: jobs.TensorJob, part: tuple[int, int]) -> torch.Tensor:
        merged.append((self.ref.text, job.name, part))
        return merge(self, job, part)

    monkeypatch.setattr(jobs, "BLOCK_ELEMENTS", 64)
    monkeypatch.setattr(StageCheckpoint, "_merge", counting)
    result = dopkit.run(recipe_of(CASES["whole tensors"], llama), tmp_path / "out")
    stages = {name: stage.plan.jobs for name, stage in result.plan.stages.items()}
    parts = [(name, job.name, part) for name, own in stages.items() for job in own for part in job.parts()]
    assert len(merged) == len(set(merged)) and set(merged) == set(parts)


def test_memory_counts_what_merging_a_stage_takes(llama: Path, tmp_path: Path) -> None:
    documents = [{"name": "a", "models": ["./e0", "./e1"], **TIES}, {"models": ["a", "./e2"], **LINEAR}]
    folder = one_by_one(documents, llama, tmp_path)
    alone = dopkit.plan(
        dopkit.parse_recipe(f"merge_method: average\nmodels: [{tmp_path}/a, {llama}/e2]"), tmp_path / "o"
    )
    staged = dopkit.plan(recipe_of(documents, llama), tmp_path / "out")
    largest = max(staged.stages["a"].plan.jobs, key=lambda job: job.working_bytes)
    needs = [one.memory_bytes - one.program_bytes for one in (staged, alone)]
    more = needs[0] - needs[1]
    assert folder.is_dir() and largest.working_bytes + 2 * largest.nbytes <= more < 2 * largest.working_bytes + 60_000
    assert staged.disk_bytes == dopkit.plan(load_recipe(folder / "dopkit_recipe.yaml"), tmp_path / "o").disk_bytes
    kept = dopkit.plan(recipe_of(documents, llama), tmp_path / "out", dopkit.Options(keep_stages=True))
    assert kept.disk_bytes == staged.disk_bytes + staged.stages["a"].plan.output_bytes


# Interruptions, changes


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("tensors", [5, 30])
def test_a_rerun_continues(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: int, keep: bool
) -> None:
    recipe, options = recipe_of(CASES["whole tensors"], llama), dopkit.Options(keep_stages=keep)
    dopkit.run(recipe, tmp_path / "whole", options)
    if tensors < len(dopkit.plan(recipe, tmp_path / "out").jobs) * (3 if keep else 1):
        with monkeypatch.context() as patch:
            stop_after(patch, tensors)
            with pytest.raises(Stopped):
                dopkit.run(recipe, tmp_path / "out", options)
    dopkit.run(recipe, tmp_path / "out", options)
    for folder in (".", "stages/a", "stages/b") if keep else (".",):
        assert files(tmp_path / "out" / folder) == files(tmp_path / "whole" / folder)
    assert dopkit.run(recipe, tmp_path / "out", options).already_there


def test_another_source_of_a_stage_is_another_merge(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "models")
    recipe = recipe_of(CASES["elementwise"], tmp_path / "models")
    first = dopkit.run(recipe, tmp_path / "out")
    shutil.rmtree(tmp_path / "models" / "e1")
    tiny.make_expert(llama / "base", tmp_path / "models" / "e1", seed=77)
    with pytest.raises(OutputError, match="in the way"):
        dopkit.run(recipe, tmp_path / "out")
    second = dopkit.run(recipe, tmp_path / "out2")
    identities = [one.receipt["models"][0]["identity"] for one in (first, second)]
    assert all(identity.startswith("merged:") for identity in identities) and len(set(identities)) == 2
    moved = dopkit.run(recipe_of(CASES["elementwise"], llama), tmp_path / "out3")
    assert moved.receipt["models"][0]["identity"] == identities[0]  # wherever the same models lie


def test_kept_stages_are_models(llama: Path, tmp_path: Path) -> None:
    documents = CASES["three deep, each used twice"]
    one_by_one(documents, llama, tmp_path / "disk")
    options = dopkit.Options(keep_stages=True)
    result = dopkit.run(recipe_of(documents, llama), tmp_path / "out", options)
    for name in ("a", "b", "c"):
        assert files(tmp_path / "out" / "stages" / name) == files(tmp_path / "disk" / name)
        dopkit.load(tmp_path / "out" / "stages" / name)
    assert files(tmp_path / "out") == files(tmp_path / "disk" / "result")
    dopkit.run(load_recipe(tmp_path / "out" / "stages" / "c" / "dopkit_recipe.yaml"), tmp_path / "c")
    assert files(tmp_path / "c") == files(tmp_path / "disk" / "c")
    assert dopkit.run(recipe_of(documents, llama), tmp_path / "out").already_there
    assert not [name for name in result.receipt["tensors"] if "stages" in name]
    shutil.rmtree(tmp_path / "out" / "stages")
    with pytest.raises(OutputError) as caught:
        dopkit.run(recipe_of(documents, llama), tmp_path / "out", options)
    assert "without the models of its stages" in str(caught.value)
    with pytest.raises(PlanError, match="1 problem"):
        dopkit.plan(recipe_of([documents[0] | {"name": "x"}], llama), tmp_path / "x", options)


def test_models_are_added_to_what_was_merged_in_stages(llama: Path, tmp_path: Path) -> None:
    stage = {"name": "a", "models": ["./e0", "./e1"], **ADD, "dtype": "float32"}
    documents = [stage, {"models": ["a", "./e2"], **DOP, "dtype": "float32"}]
    dopkit.run(recipe_of(documents, llama), tmp_path / "out")
    dopkit.add(tmp_path / "out", [str(llama / "e3")], tmp_path / "grown")
    documents[1]["models"] = ["a", "./e2", "./e3"]
    dopkit.run(recipe_of(documents, llama), tmp_path / "whole")
    assert tiny.weights(tmp_path / "grown") == tiny.weights(tmp_path / "whole")
    recipe = load_recipe(tmp_path / "grown" / "dopkit_recipe.yaml")
    assert [one.name for one in recipe.stages] == ["a"] and len(recipe.models) == 3
    receipt = json.loads((tmp_path / "grown" / "dopkit_receipt.json").read_text())
    assert [one["name"] for one in receipt["stages"]] == ["a"]


# What is wrong with the models


def test_problems_of_all_stages_are_told_together(llama: Path, vit: Path, tmp_path: Path) -> None:
    documents = [
        {"name": "a", "models": ["./e0", "./nowhere"], **ADD},
        {"name": "b", "models": [str(vit / "e0")], **ADD},
        {"name": "c", "models": ["a", "./e1"], **LINEAR},
        {"models": ["b", "c", "./neither"], **LINEAR},
    ]
    with pytest.raises(PlanError) as caught:
        dopkit.plan(recipe_of(documents, llama), tmp_path / "out")
    places = [problem.place for problem in caught.value.problems]
    text = str(caught.value)
    assert any(place.startswith("stage a") for place in places) and any(place.startswith("stage b") for place in places)
    assert "./nowhere" in text and "./neither" in text and not any("stage c" in place for place in places)


def test_values_that_no_stage_can_merge(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama / "base", tmp_path / "base")

    def steps(number: int) -> Any:
        return lambda tensors: {**tensors, "steps": torch.tensor(number)} if "lm_head.weight" in tensors else tensors

    for name, number in (("one", 1), ("two", 2)):
        tiny.edit(llama / "base", tmp_path / name, steps(number))
        for index in (tmp_path / name).glob("*.index.json"):
            data = json.loads(index.read_text())
            data["weight_map"]["steps"] = data["weight_map"]["lm_head.weight"]
            index.write_text(json.dumps(data))
    documents = [
        {"name": "a", "models": ["./one", "./two"], **LINEAR},
        {"merge_method": "linear", "models": ["a"], "parameters": {"weight": 1}},
    ]
    with pytest.raises(PlanError, match="1 problem") as caught:
        dopkit.run(recipe_of(documents, tmp_path), tmp_path / "out")
    assert caught.value.problems[0].place == "stage a: ./two" and "steps (I64) differs" in caught.value.problems[0].what


def test_a_stage_that_is_not_finite_is_named(llama: Path, tmp_path: Path) -> None:
    tiny.edit(llama / "e1", tmp_path / "bad", lambda tensors: {
        name: torch.full_like(tensor, float("nan")) if name == "model.norm.weight" else tensor
        for name, tensor in tensors.items()
    })  # fmt: skip
    documents = [{"name": "a", "models": ["./e0", str(tmp_path / "bad")], **ADD}, {"models": ["a", "./e2"], **LINEAR}]
    with pytest.raises(MergeError, match="cannot merge model.norm.weight") as caught:
        dopkit.run(recipe_of(documents, llama), tmp_path / "out")
    (problem,) = caught.value.problems
    assert problem.place == f"stage a: {tmp_path}/bad" and "16 values that are NaN" in problem.what


# Over the network


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TestHub]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with TestHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache", token=hub.token("org"))
        yield hub
        assert hub.crashes == []


def publish(hub: TestHub, root: Path, *names: str) -> None:
    for name in names or ("base", "e0", "e1", "e2", "e3"):
        hub.create_repo(f"org/{name}", {})
        hub.add_folder(f"org/{name}", root / name)
    hub.clear_log()


def from_hub(documents: list[Document]) -> dopkit.Recipe:
    return dopkit.parse_recipe(yaml.safe_dump_all(documents).replace("./", "org/"), "merged")


def test_models_behind_a_stage_are_downloaded_and_named(hub: TestHub, llama: Path, tmp_path: Path) -> None:
    publish(hub, llama)
    recipe = from_hub(CASES["whole tensors"])
    planned = dopkit.plan(recipe, tmp_path / "out")
    sizes = [file.stat().st_size for name in ("base", "e0", "e1", "e2", "e3")
             for file in (llama / name).glob("*.safetensors")]  # fmt: skip
    assert planned.download_bytes == sum(sizes)
    result = dopkit.run(recipe, tmp_path / "out")
    assert files(tmp_path / "out") == files(one_by_one(CASES["whole tensors"], llama, tmp_path / "disk"))
    written = load_recipe(result.folder / "dopkit_recipe.yaml")
    assert len(written.real_refs) == 5 and all(ref.pinned for ref in written.real_refs)
    card = (result.folder / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == ["org/base", "org/e0", "org/e1", "org/e2", "org/e3"]
    assert "makes it again" in card and "| base | [org/base](https://huggingface.co/org/base) | `" in card
    named = [source["model"] for stage in result.receipt["stages"] for source in stage["models"]]
    assert named == ["org/e0@" + hub_commit(written, "e0"), "org/e1@" + hub_commit(written, "e1"), "a",
                     "org/e2@" + hub_commit(written, "e2")]  # fmt: skip


def hub_commit(recipe: dopkit.Recipe, name: str) -> str:
    return next(str(ref.revision) for ref in recipe.real_refs if ref.repo == f"org/{name}")


@pytest.mark.parametrize("case", ["elementwise", "a stage as base", "three deep, each used twice", "whole tensors"])
def test_streamed_stages(hub: TestHub, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """The same bytes, nothing stored, and every announced read asked for in its turn."""
    publish(hub, llama)
    monkeypatch.setattr(streaming, "LEAST_STREAM_BYTES", 0)
    alone: list[str] = []
    monkeypatch.setattr(
        "dopkit.checkpoints.streamed.StreamedCheckpoint._fetch_at_once",
        lambda self, wanted, view: (alone.append(str(wanted)), self._fetch(wanted, view))[1],
    )
    result = dopkit.run(from_hub(CASES[case]), tmp_path / "out", dopkit.Options(stream=True))
    assert result.plan.streamed and not list((tmp_path / "cache").rglob("*.safetensors"))
    assert files(tmp_path / "out") == files(one_by_one(CASES[case], llama, tmp_path / "disk"))
    assert alone == []
    kept = dopkit.run(from_hub(CASES[case]), tmp_path / "kept", dopkit.Options(stream=True, keep_stages=True))
    assert files(kept.folder) == files(tmp_path / "out")


def test_streamed_stages_with_other_tokens(hub: TestHub, tmp_path: Path) -> None:
    documents = wordy_documents(tmp_path)
    publish(hub, tmp_path, "base", "e0", "e1", "e2")
    dopkit.run(from_hub(documents), tmp_path / "out", dopkit.Options(stream=True))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert files(tmp_path / "out") == files(one_by_one(documents, tmp_path, tmp_path / "disk"))


def test_a_branch_that_moves_means_one_commit(hub: TestHub, llama: Path, tmp_path: Path) -> None:
    """A base that every document names is asked for once, and a rerun keeps the commits it began with."""
    publish(hub, llama)
    recipe = from_hub(CASES["whole tensors"])
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            dopkit.run(recipe, tmp_path / "out")
    hub.add_folder("org/e1", llama / "e2")
    hub.add_folder("org/base", llama / "e3")
    dopkit.run(recipe, tmp_path / "out")
    assert files(tmp_path / "out") == files(one_by_one(CASES["whole tensors"], llama, tmp_path / "disk"))


@pytest.mark.filterwarnings(CLIENT_WARNING)
def test_a_published_merge_is_made_again(hub: TestHub, llama: Path, tmp_path: Path) -> None:
    publish(hub, llama)
    made = dopkit.run(
        from_hub(CASES["three deep, each used twice"]), tmp_path / "out", dopkit.Options(keep_stages=True)
    )
    dopkit.push(made.folder, "org/merged")
    published = hub_recipes.pinned("org/merged")
    assert published is not None and not [name for name in hub_room.files(published) if name.startswith("stages/")]
    again = dopkit.run(dopkit.load_recipe("org/merged"), tmp_path / "again")
    assert hub_recipes.comparison(published, again.receipt).startswith("the same bytes")
    hub_recipes.share(from_hub(CASES["a stage as base"]), "org/recipe")
    shared = dopkit.load_recipe("org/recipe")
    assert [stage.name for stage in shared.stages] == ["a", "b"] and all(ref.pinned for ref in shared.real_refs)


def test_a_folder_behind_a_stage_is_not_published_by_accident(hub: TestHub, llama: Path, tmp_path: Path) -> None:
    documents = [CASES["elementwise"][0], {"merge_method": "average", "models": ["a"]}]
    push = dopkit.PushOptions(repo_id="org/merged")
    with pytest.raises(PlanError, match="local folders|1 problem"):
        dopkit.plan(recipe_of(documents, llama), tmp_path / "out", dopkit.Options(push=push))
    made = dopkit.run(recipe_of(documents, llama), tmp_path / "out")
    with pytest.raises(OutputError) as caught:
        dopkit.push(made.folder, "org/merged")
    assert "names local folders" in str(caught.value)
    with pytest.raises(RecipeError, match="names 3 folders"):
        hub_recipes.share(recipe_of(documents, llama), "org/recipe")


def test_task_vectors_of_stages(llama: Path, tmp_path: Path) -> None:
    documents = CASES["whole tensors"]
    folder = one_by_one(documents, llama, tmp_path)
    alone = dopkit.inspect(load_recipe(folder / "dopkit_recipe.yaml"))
    assert dopkit.inspect(recipe_of(documents, llama)).as_data() == alone.as_data()


# Threads and memory


def test_a_stage_is_merged_with_the_threads_of_a_merge_of_its_own(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums depend on them. Small matrices have one thread each, large ones all; what is read for either has all."""
    seen: dict[tuple[int, ...], set[int]] = {}
    start = Dop.start

    def starting(self: Dop, base: torch.Tensor | None, first: torch.Tensor, ctx: Context) -> Any:
        seen.setdefault(tuple(first.shape), set()).add(torch.get_num_threads())
        return start(self, base, first, ctx)

    monkeypatch.setattr(Dop, "start", starting)
    monkeypatch.setattr(pieces, "ALONE_SIDE", 16)
    documents = [
        {"name": "a", "models": ["./e0", "./e1"], **DOP},
        {"name": "b", "models": ["a", "./e2"], **DOP},
        {"models": ["b", "./e3"], **LINEAR},
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        kept = dopkit.run(recipe_of(documents, llama), tmp_path / "kept", dopkit.Options(keep_stages=True))
        by_itself = dict(seen)
        seen.clear()
        dopkit.run(recipe_of(documents, llama), tmp_path / "out")
    finally:
        torch.set_num_threads(before)
    assert seen == by_itself
    assert {1, 2} == set.union(*seen.values()) and all(len(threads) == 1 for threads in seen.values())
    assert files(tmp_path / "out") == files(kept.folder)


def test_kept_stages_stay_within_the_memory_of_the_whole(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: list[tuple[int, Buffers]] = []
    make = Engine.__init__

    def making(self: Engine, plan: Any, *args: Any, **kwargs: Any) -> None:
        budgets.append((plan.work_bytes, plan.buffers))
        make(self, plan, *args, **kwargs)

    monkeypatch.setattr(Engine, "__init__", making)
    limit = resident_bytes() + 200_000_000
    options = dopkit.Options(keep_stages=True, max_memory=limit)
    result = dopkit.run(recipe_of(CASES["elementwise"], llama), tmp_path / "out", options)
    assert budgets == [(result.plan.work_bytes, result.plan.buffers)] * 2
    assert budgets[0][0] < 200_000_000
