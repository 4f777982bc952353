"""Which matrices are parked: those that need more than there is, and no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import dopkit
from dopkit.methods import DOP_EXACT
from dopkit.planning.parking import parked
from dopkit.planning.room import Room, host_bytes, problems_of

GB, MB = 10**9, 10**6


@pytest.fixture
def plan(vit: Path) -> dopkit.Plan:
    """Of matrices that need 100 MB, or 40 MB parked; the first needs twice as much."""
    recipe = dopkit.parse_recipe("base_model: ./base\nmerge_method: dop\nmodels: [./e0, ./e1]", folder=vit)
    plan = dopkit.plan(recipe)
    own = replace(DOP_EXACT, working_bytes=lambda _: 100 * MB, least_bytes=lambda _: 40 * MB)
    first = replace(DOP_EXACT, working_bytes=lambda _: 200 * MB, least_bytes=lambda _: 80 * MB)
    names = [job.name for job in plan.jobs if job.rule is DOP_EXACT]
    assert len(names) > 2
    rules = {name: first if name == names[0] else own for name in names}
    return replace(plan, jobs=tuple(replace(job, rule=rules.get(job.name, job.rule)) for job in plan.jobs))


def room(memory: int, **others: object) -> Room:
    return replace(Room(disk=GB, cache_disk=GB, memory=memory, parks=True), **others)  # type: ignore[arg-type]


def names(plan: dopkit.Plan) -> list[str]:
    return [job.name for job in plan.jobs if job.parked]


def test_those_that_need_more_than_there_is(plan: dopkit.Plan) -> None:
    matrices = [job for job in plan.jobs if job.rule.least_bytes]
    assert parked(plan, room(250 * MB), 0) is plan
    some = parked(plan, room(250 * MB), 100 * MB)
    assert names(some) == [matrices[0].name]
    assert some.notes[-1].startswith("1 matrix needs more memory than there is (up to 200 MB)")
    every = parked(plan, room(250 * MB), 170 * MB)
    assert names(every) == [job.name for job in matrices]
    assert f"{len(matrices)} matrices need more" in every.notes[-1]
    one = every.by_name[matrices[0].name]
    assert one.held_bytes < 81 * MB < one.working_bytes
    assert host_bytes(one, room(GB)) == one.held_bytes


def test_it_is_the_same_merge(plan: dopkit.Plan) -> None:
    assert parked(plan, room(250 * MB), 170 * MB).fingerprint("cpu") == plan.fingerprint("cpu")


def test_none_where_there_is_no_disk_for_it_or_a_device(plan: dopkit.Plan) -> None:
    assert parked(plan, room(MB, parks=False), 0) is plan
    assert parked(plan, room(MB, device=GB), 0) is plan
    part = parked(plan, room(MB, device=150 * MB), 0)
    assert len(names(part)) == 1
    assert host_bytes(part.by_name[names(part)[0]], room(MB, device=150 * MB)) > 80 * MB  # it does not go there now


def test_the_disk_must_hold_them(plan: dopkit.Plan) -> None:
    own = parked(plan, room(MB, processes=3), 0)
    assert own.scratch_bytes == pytest.approx(3 * 2 * 200 * MB, rel=0.01)
    assert own.disk_bytes == plan.disk_bytes + own.scratch_bytes
    for shards_leave in (False, True):
        (problem,) = problems_of(own, room(GB, shards_leave=shards_leave))
        assert problem.what.startswith("too little disk space for the output: 1.2 GB needed")
        assert problems_of(own, room(GB, disk=2 * GB, shards_leave=shards_leave)) == []
