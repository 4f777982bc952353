"""Which heads are kept, what they are called, and that nothing of a model is forgotten."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tiny

import dopkit
from dopkit.checkpoints import open_checkpoint
from dopkit.planning.heads import first_labels, kept_heads, labels
from dopkit.planning.matching import Model
from dopkit.planning.streaming import StreamRoom, decide
from dopkit.refs import ModelRef
from dopkit.skeleton import build

MakeRecipe = Callable[..., dopkit.Recipe]


def opened(plan: dopkit.Plan) -> list[Model]:
    """Donor and models as the plan saw them, but with all their files yet to be downloaded."""
    models = []
    for source in (plan.donor, *plan.models):
        found = open_checkpoint(source.ref)
        missing = frozenset(spec.file for spec in found.specs.values())
        shapes = {name: spec.shape for name, spec in found.specs.items()}
        claimed = dataclasses.replace(source, download_bytes=10**6, missing=missing)
        models.append(Model(claimed, found.specs, found.config, build(found.config, shapes)))
    return models


def names(
    donor: Model, expert: Model, folders: Sequence[str], earlier: Sequence[str] = (), beside: Sequence[str] = ()
) -> list[str]:
    """What the heads of models are called that lie in these folders."""

    def ref(folder: str) -> ModelRef:
        return ModelRef(folder, folder=Path("/models") / folder)

    def at(folder: str) -> Model:
        return dataclasses.replace(expert, source=dataclasses.replace(expert.source, ref=ref(folder)))

    before = [donor] if earlier else []
    heads = kept_heads(donor, [*before, *map(at, folders)], [ref(folder) for folder in earlier], beside)
    return [head.name for head in heads]


@pytest.fixture
def two(tmp_path: Path, make_recipe: MakeRecipe) -> dopkit.Plan:
    """A backbone, and classifiers of three and five classes on it."""
    tiny.make_vit(tmp_path / "base")
    for name, number in (("e0", 3), ("e1", 5)):
        tiny.make_vit(tmp_path / name, number)
    return dopkit.plan(make_recipe(tmp_path, ["e0", "e1"], heads="per-task"))


@pytest.mark.parametrize("base", [None, 4])
def test_every_tensor_is_merged_kept_or_left_out(tmp_path: Path, make_recipe: MakeRecipe, base: int | None) -> None:
    tiny.make_vit(tmp_path / "base", base)
    for name, number in (("e0", 3), ("e1", 5)):
        tiny.make_vit(tmp_path / name, number)
    tiny.make_vit(tmp_path / "e2")  # a backbone has no head to keep
    plan = dopkit.plan(make_recipe(tmp_path, ["e0", "e1", "e2"], heads="per-task"))
    for index, name in enumerate(("base", "e0", "e1", "e2")):
        here = tmp_path / name
        read = [job.inputs[index - 1].name if index else job.name for job in plan.jobs]
        left = [one.name for one in plan.dropped if one.ref.folder == here]
        kept = [spec.name for head in plan.heads if head.ref.folder == here for spec in head.tensors]
        assert sorted([*read, *left, *kept]) == sorted(tiny.read(here)), name
    own = {"classifier.bias", "classifier.weight"} if base else set()
    assert {(one.name, one.why) for one in plan.dropped} == {(name, "heads: per-task") for name in own}
    assert [(head.name, head.file, head.architecture, head.labels) for head in plan.heads] == [
        ("e0", "heads/e0.safetensors", "ViTForImageClassification", 3),
        ("e1", "heads/e1.safetensors", "ViTForImageClassification", 5),
    ]
    assert {spec.name: spec.shape for spec in plan.heads[1].tensors} == {
        "classifier.bias": (5,), "classifier.weight": (5, 16)
    }  # fmt: skip


def test_the_donor_of_a_method_without_base_keeps_its_own_head(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    for name, number in (("e0", 3), ("e1", 5)):
        tiny.make_vit(tmp_path / name, number)
    plan = dopkit.plan(make_recipe(tmp_path, ["e0", "e1"], "average", base=None, heads="per-task"))
    assert [head.name for head in plan.heads] == ["e0", "e1"]
    assert plan.dropped == ()
    assert not any("classifier" in job.name for job in plan.jobs)


def test_a_pooler_that_the_base_lacks_goes_with_the_head(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    for name, number in (("e0", 3), ("e1", 5)):
        tiny.make_bert(tmp_path / name, number)
    pooler = {"bert.pooler.dense.bias", "bert.pooler.dense.weight"}
    head = {"classifier.bias", "classifier.weight"}
    for name, has_pooler in (("with", True), ("without", False)):
        tiny.make_bert(tmp_path / name, pooler=has_pooler)
        plan = dopkit.plan(make_recipe(tmp_path, ["e0", "e1"], base=name, heads="per-task"))
        assert {spec.name for spec in plan.heads[0].tensors} == (head if has_pooler else head | pooler)
        assert any("pooler" in job.name for job in plan.jobs) == has_pooler


def test_what_it_takes_is_counted(two: dopkit.Plan, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    without = dopkit.plan(make_recipe(tmp_path, ["e0", "e1"], heads="drop"))
    own = [4 * (3 + 3 * 16), 4 * (5 + 5 * 16)]
    assert [head.nbytes for head in two.heads] == own
    assert two.disk_bytes - without.disk_bytes == sum(own)
    plenty = StreamRoom(disk=10**9, memory=10**11, memory_given=False)
    streamed = [decide(plan, opened(plan), plenty, wanted=True) for plan in (two, without)]
    more = [
        one.download_bytes - other.download_bytes
        for one, other in zip(*(each.models for each in streamed), strict=True)
    ]
    assert more == own


def test_other_heads_are_another_merge(two: dopkit.Plan, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    without = dopkit.plan(make_recipe(tmp_path, ["e0", "e1"], heads="drop"))
    assert without.jobs == two.jobs
    assert without.fingerprint("cpu") != two.fingerprint("cpu")


@pytest.mark.parametrize(
    ("folders", "earlier", "expected"),
    [
        (["a/mnist", "a/cars"], [], ["mnist", "cars"]),
        (["a/mnist", "b/mnist"], [], ["a--mnist", "b--mnist"]),
        (["a/mnist", "b/MNIST"], [], ["mnist", "MNIST-2"]),  # one file on some disks
        (["a/.mnist"], [], ["mnist"]),  # what is hidden is not published
        (["b/cars"], ["a/mnist"], ["cars"]),
        (["b/mnist"], ["a/mnist"], ["b--mnist"]),
        (["b/Mnist"], ["a/mnist"], ["Mnist-2"]),
    ],
)
def test_names(two: dopkit.Plan, folders: list[str], earlier: list[str], expected: list[str]) -> None:
    donor, expert, _ = opened(two)
    assert names(donor, expert, folders, earlier) == expected


@pytest.mark.parametrize(
    ("folder", "earlier", "beside", "expected"),
    [
        ("c/mnist-2", ["a/mnist", "b/MNIST"], ["mnist", "MNIST-2"], "mnist-2-2"),
        ("b/mnist", ["a/.mnist"], ["mnist"], "mnist-2"),
    ],
)
def test_a_head_that_is_there_is_not_written_over(
    two: dopkit.Plan, folder: str, earlier: list[str], beside: list[str], expected: str
) -> None:
    """What an earlier head is called may not be what its model is."""
    donor, expert, _ = opened(two)
    assert names(donor, expert, [folder], earlier, beside) == [expected]


def test_labels() -> None:
    three = {"id2label": {"0": "cat", "1": "dog", "2": "hen"}}
    assert (labels(three, "ViTForImageClassification"), first_labels(three, 2)) == (3, ["cat", "dog"])
    assert labels({"num_labels": 7}, "BertForSequenceClassification") == 7
    assert labels({}, "BertForSequenceClassification") == 2  # transformers leaves out what is as by default
    assert labels({}, "LlamaForCausalLM") is None
    assert first_labels({"id2label": {"0": "LABEL_0"}}, 2) == first_labels({}, 2) == []
