"""When a merge is streamed, and what the plan then says it needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import dopkit
from dopkit.checkpoints import open_checkpoint
from dopkit.planning import streaming
from dopkit.planning.matching import Model
from dopkit.planning.streaming import StreamRoom, decide
from dopkit.skeleton import build

GB = 10**9
DOWNLOAD = 50_000
PLENTY = StreamRoom(disk=GB, memory=64 * GB, memory_given=False)


def prepared(llama: Path, files: int | None = None, **keys: object) -> tuple[dopkit.Plan, list[Model]]:
    """A plan over folders that claims that so many files of each (None: all) are yet to be downloaded."""
    text = f"base_model: ./base\nmerge_method: dop\nmodels: [./e0, ./e1]\n{keys.get('text', '')}"
    plan = dopkit.plan(dopkit.parse_recipe(text, folder=llama))
    models = []
    for source in (plan.donor, *plan.models):
        opened = open_checkpoint(source.ref)
        missing = sorted({spec.file for spec in opened.specs.values()})[:files]
        claimed = dataclasses.replace(source, download_bytes=DOWNLOAD if missing else 0, missing=frozenset(missing))
        shapes = {name: spec.shape for name, spec in opened.specs.items()}
        models.append(Model(claimed, opened.specs, opened.config, build(opened.config, shapes)))
    donor, *others = (model.source for model in models)
    return dataclasses.replace(plan, donor=donor, models=tuple(others)), models


def test_what_is_here_is_not_streamed(llama: Path) -> None:
    plan, models = prepared(llama, files=0)
    assert decide(plan, models, PLENTY, wanted=True) is plan


def test_what_fits_is_downloaded_unless_streaming_is_wanted(llama: Path) -> None:
    plan, models = prepared(llama)
    exactly = dataclasses.replace(PLENTY, disk=3 * DOWNLOAD)
    assert decide(plan, models, exactly, wanted=False) is plan
    too_little = dataclasses.replace(PLENTY, disk=3 * DOWNLOAD - 1)
    made = decide(plan, models, too_little, wanted=False)
    assert made.streamed
    assert made.notes == ("150 kB of downloads do not fit where there is 150 kB, so the weights are streamed",)
    wanted = decide(plan, models, exactly, wanted=True)
    assert wanted.streamed and wanted.notes == ()


def test_only_what_is_read_and_not_here_is_counted(llama: Path) -> None:
    plan, models = prepared(llama)
    made = decide(plan, models, PLENTY, wanted=True)
    reads_base = {job.name: job.base is not None for job in plan.jobs}  # plain means do not read the base
    needed = sum(spec.nbytes for name, spec in models[0].specs.items() if reads_base[name])
    assert 0 < needed < made.donor.nbytes
    assert [source.download_bytes for source in (made.donor, *made.models)] == [needed, *[made.donor.nbytes] * 2]
    plan, models = prepared(llama, files=1)
    part = decide(plan, models, PLENTY, wanted=True)
    assert 0 < part.donor.download_bytes < made.donor.nbytes
    plan, models = prepared(llama, text="copy: ['*mlp*']")
    made = decide(plan, models, PLENTY, wanted=True)
    mlp = sum(spec.nbytes for name, spec in models[0].specs.items() if "mlp" in name)
    assert made.donor.download_bytes >= mlp  # copied from there
    assert made.models[0].download_bytes == made.models[0].nbytes - mlp


def test_the_memory_held_ahead(llama: Path) -> None:
    plan, models = prepared(llama)

    def held(spare: int, given: bool) -> int:
        memory = plan.memory_bytes + streaming.STREAM_OVERHEAD_BYTES + spare
        made = decide(plan, models, StreamRoom(GB, memory, given), wanted=True)
        assert made.memory_bytes == plan.memory_bytes + streaming.STREAM_OVERHEAD_BYTES + made.stream_bytes
        return made.stream_bytes

    assert held(64 * GB, given=False) == streaming.STREAM_BYTES
    assert held(64 * GB, given=True) == streaming.MOST_STREAM_BYTES
    for given in (False, True):
        assert held(30_000_000, given) == 30_000_000
        assert held(-GB, given) == streaming.LEAST_STREAM_BYTES


def test_without_the_hub_it_takes_at_most_100_mb_less() -> None:
    assert streaming.STREAM_BYTES + streaming.STREAM_OVERHEAD_BYTES <= 100_000_000


@pytest.mark.parametrize("given", [True, False])
def test_a_plan_of_folders_is_never_streamed(llama: Path, given: bool) -> None:
    recipe = dopkit.parse_recipe("base_model: ./base\nmerge_method: dop\nmodels: [./e0]", folder=llama)
    options = dopkit.Options(stream=True, max_memory=GB if given else None)
    assert not dopkit.plan(recipe, options=options).streamed


def test_a_base_that_is_read_twice_is_counted_twice(llama: Path) -> None:
    """The second pass scales, which reads the base of every tensor that was folded once more."""
    plan, models = prepared(llama, text="copy: ['*mlp*']\nparameters: {scale: norm}")
    made = decide(plan, models, PLENTY, wanted=True)
    once = {job.name: (1 if job.rule.fold is None else 2) for job in plan.jobs}
    assert made.donor.download_bytes == sum(spec.nbytes * once[name] for name, spec in models[0].specs.items())
