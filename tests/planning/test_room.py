"""Disk and memory: what a plan needs against what there is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import dopkit
from dopkit import skeleton
from dopkit.errors import PlanError
from dopkit.measure import resident_bytes
from dopkit.planning import buffers, matching
from dopkit.planning import room as rooms
from dopkit.planning.room import Room

GB = 10**9
PLENTY = 100 * GB  # the program itself, which runs all the tests, has come to something


@pytest.fixture
def plan(llama: Path) -> dopkit.Plan:
    recipe = dopkit.parse_recipe("base_model: ./base\nmerge_method: dop\nmodels: [./e0]", folder=llama)
    plan = dopkit.plan(recipe)
    downloads = dataclasses.replace(plan.donor, download_bytes=30_000)
    return dataclasses.replace(plan, donor=downloads)


def messages(plan: dopkit.Plan, room: Room) -> list[str]:
    return [problem.what for problem in rooms.problems_of(plan, room)]


def test_enough(plan: dopkit.Plan) -> None:
    assert messages(plan, Room(disk=GB, cache_disk=GB, memory=PLENTY)) == []


def test_shards_that_leave_need_the_room_of_two(llama: Path) -> None:
    recipe = dopkit.parse_recipe("base_model: ./base\nmerge_method: dop\nmodels: [./e0]", folder=llama)
    plan = dopkit.plan(recipe, options=dopkit.Options(max_shard_size=5000))
    two = sum(sorted(shard.size for shard in plan.shards)[-2:])
    assert two < plan.output_bytes
    assert len(messages(plan, Room(disk=two, cache_disk=GB, memory=PLENTY))) == 1
    assert messages(plan, Room(disk=two, cache_disk=GB, memory=PLENTY, shards_leave=True)) == []
    assert len(messages(plan, Room(disk=two - 1, cache_disk=GB, memory=PLENTY, shards_leave=True))) == 1


def test_what_stays_when_shards_leave_needs_its_room(vit: Path) -> None:
    """Results that wait for the scale of the whole model, and the models of earlier steps."""
    text = "base_model: ./base\nmerge_method: opcm\nmodels: [./e0, ./e1]"
    options = dopkit.Options(max_shard_size=5000, save_steps=True)
    plan = dopkit.plan(dopkit.parse_recipe(text, folder=vit), options=options)
    two = sum(sorted(shard.size for shard in plan.shards)[-2:])
    stays = plan.output_bytes + 2 * sum(shard.size for shard in plan.unscaled_shards)
    assert messages(plan, Room(disk=two + stays, cache_disk=GB, memory=PLENTY, shards_leave=True)) == []
    assert len(messages(plan, Room(disk=two + stays - 1, cache_disk=GB, memory=PLENTY, shards_leave=True))) == 1


def test_what_waits_for_its_scale_is_written_in_float32(llama: Path) -> None:
    plans = [
        dopkit.plan(dopkit.parse_recipe(f"base_model: ./base\nmerge_method: dop\nmodels: [./e0]{more}", folder=llama))
        for more in ("", "\nparameters: {scale: norm}")
    ]
    model = matching.Model(plans[0].donor, {}, None, skeleton.build(None, {}))
    written = []
    for plan in plans:
        jobs = tuple(dataclasses.replace(job, base=None, inputs=()) for job in plan.jobs)
        need = rooms.needs(dataclasses.replace(plan, jobs=jobs), model, [], Room(GB, GB, PLENTY))
        written.append(need.written)
    assert written[1] == 2 * written[0] > 0


def test_the_results_of_earlier_steps_take_memory(vit: Path) -> None:
    """Measured: a merge of whole tensors that writes every step takes more than one that does not."""
    text = "base_model: ./base\nmerge_method: ties\nmodels: [./e0, ./e1]\nparameters: {density: 0.5}"
    recipe = dopkit.parse_recipe(text, folder=vit)
    plans = [dopkit.plan(recipe, options=dopkit.Options(save_steps=steps)) for steps in (False, True)]
    largest = max(job.nbytes for job in plans[0].jobs)
    last, every = (plan.memory_bytes - plan.program_bytes for plan in plans)
    assert every == last + 2 * largest


def test_each_shortage_has_its_numbers(plan: dopkit.Plan) -> None:
    found = messages(plan, Room(disk=10_000, cache_disk=10_000, memory=1_000_000))
    assert found[0].startswith("too little disk space for the output: ") and found[0].endswith(", 10 kB there")
    assert found[1] == "too little disk space for downloads: 30 kB needed, 10 kB there"
    assert found[2].startswith("too little memory (the largest need is for ") and found[2].endswith(", 1 MB there")


def test_one_disk_must_hold_both(plan: dopkit.Plan) -> None:
    room = Room(disk=plan.output_bytes + 29_999, cache_disk=plan.output_bytes + 29_999, memory=PLENTY)
    assert messages(plan, room) == []
    assert len(messages(plan, dataclasses.replace(room, shared_disk=True))) == 1


def test_what_an_interrupted_run_wrote_counts(plan: dopkit.Plan) -> None:
    room = Room(disk=1000, cache_disk=GB, memory=PLENTY)
    assert len(messages(plan, room)) == 1
    assert messages(plan, dataclasses.replace(room, written=plan.output_bytes)) == []


def test_the_plan_refuses(llama: Path) -> None:
    recipe = dopkit.parse_recipe("base_model: ./base\nmerge_method: dop\nmodels: [./e0]", folder=llama)
    with pytest.raises(PlanError, match="too little memory"):
        dopkit.plan(recipe, options=dopkit.Options(max_memory=1000))


def test_a_job_that_fits_a_device_takes_little_of_the_host(plan: dopkit.Plan) -> None:
    job = max(plan.jobs, key=lambda job: job.working_bytes)
    assert job.rule.float64
    on_cpu = Room(disk=GB, cache_disk=GB, memory=PLENTY)
    assert rooms.host_bytes(job, on_cpu) == job.working_bytes
    part = 4 * job.numel
    fits = dataclasses.replace(on_cpu, device=job.working_bytes)
    assert rooms.host_bytes(job, fits) == 2 * part
    for other in ({"device": job.working_bytes - 1}, {"device_float64": False}):
        assert rooms.host_bytes(job, dataclasses.replace(fits, **other)) == job.working_bytes


def test_the_refusal_names_what_would_do(plan: dopkit.Plan) -> None:
    room = Room(disk=GB, cache_disk=GB, memory=1_000_000, program=300_000_000)
    plan = dataclasses.replace(plan, memory_bytes=560_000_000)
    (free,) = rooms.problems_of(plan, room)
    assert free.what.endswith(": 560 MB needed (300 MB of it by the program itself), 1 MB there")
    assert free.remedy == "564MB would do: free some, or use a larger machine."
    (given,) = rooms.problems_of(plan, dataclasses.replace(room, memory_given=True))
    assert given.remedy == "`--max-memory 564MB` would do, where there is so much."
    (two,) = rooms.problems_of(plan, dataclasses.replace(room, memory_given=True, processes=2))
    assert two.remedy == "`--max-memory 1.13GB` would do, where there is so much."


def test_buffers_shrink_before_a_plan_is_refused(llama: Path) -> None:
    recipe = dopkit.parse_recipe("base_model: ./base\nmerge_method: ties\nmodels: [./e0]", folder=llama)
    usual = dopkit.plan(recipe)
    beside = usual.memory_bytes - usual.program_bytes
    assert usual.buffers == buffers.USUAL
    for spare, found in ((1_000_000, 0), (-20_000_000, 1), (-60_000_000, 2)):
        limit = resident_bytes() + beside + spare
        plan = dopkit.plan(recipe, options=dopkit.Options(max_memory=limit))
        assert plan.buffers == buffers.STEPS[found]
        assert plan.memory_bytes <= limit


def test_what_is_left_is_for_tensors_in_hand(plan: dopkit.Plan, llama: Path) -> None:
    recipe = dopkit.parse_recipe("base_model: ./base\nmerge_method: dop\nmodels: [./e0]", folder=llama)
    largest = max(job.working_bytes for job in plan.jobs)
    for spare in (10_000_000, 500_000_000):
        limit = plan.memory_bytes + spare
        made = dopkit.plan(recipe, options=dopkit.Options(max_memory=limit))
        assert made.work_bytes - largest == pytest.approx(limit - made.memory_bytes, abs=100_000)


def test_without_tensors_the_reason_is_told_and_no_number(llama: Path) -> None:
    """Nothing is planned where a name is misspelt, so nobody knows what would be needed."""
    text = "base_model: ./base\nmerge_method: dop\nmodels: [./e0]\ncopy: [nothing.like.it]"
    with pytest.raises(PlanError) as caught:
        dopkit.plan(dopkit.parse_recipe(text, folder=llama), options=dopkit.Options(max_memory=1000))
    assert [problem.what for problem in caught.value.problems] == ["copy: no tensor is called 'nothing.like.it'"]
