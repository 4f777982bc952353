"""Several processes share a merge: whatever their number, and whoever continues whom, the bytes are those of one."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from together import together

import dopkit
from dopkit.errors import MergeError, OutputError, PlanError
from dopkit.planning import TensorJob
from dopkit.planning.sharing import merging_cost, shares
from dopkit.processes import ALONE, Processes
from dopkit.progress import Progress
from dopkit.writer import GuestJournal, TensorWriter

MakeRecipe = Callable[..., dopkit.Recipe]
EVERYTHING = dopkit.Options(max_shard_size=6000, save_steps=True, keep_state=True)
FOLDERS = ("", "steps/01", "steps/02", "state")


class Stopped(BaseException):
    """Stands in for a kill of every process at once."""


def merge(recipe: dopkit.Recipe, out: Path, processes: Processes, options: dopkit.Options = EVERYTHING) -> Any:
    return dopkit.run(recipe, out, dataclasses.replace(options, processes=processes))


def kill_after(monkeypatch: pytest.MonkeyPatch, tensors: int) -> None:
    """Let all processes together complete so many tensors, then none."""
    complete, left = TensorWriter.complete, [tensors]

    def dying(self: TensorWriter, name: str, record: dict[str, Any]) -> None:
        if left[0] <= 0:
            raise Stopped
        left[0] -= 1
        complete(self, name, record)

    monkeypatch.setattr(TensorWriter, "complete", dying)


@pytest.fixture(scope="module", params=["opcm", "dop"])
def recipe(request: pytest.FixtureRequest, vit: Path, make_recipe: MakeRecipe) -> dopkit.Recipe:
    """A method that keeps its state, or one whose scale takes a second pass."""
    parameters = {"scale": "norm"} if request.param == "dop" else {}
    return make_recipe(vit, ["e0", "e1", "e2"], request.param, parameters=parameters)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, recipe: dopkit.Recipe) -> dopkit.Result:
    return dopkit.run(recipe, tmp_path_factory.mktemp("alone") / "alone", EVERYTHING)


def same(folder: Path, other: Path) -> None:
    for place in FOLDERS:
        assert tiny.weights(folder / place) == tiny.weights(other / place), place
    state = [(one / "dopkit_state.json").read_bytes() for one in (folder, other)]
    assert state[0] == state[1]
    assert not list(folder.glob("journal*")) and not (folder / "unscaled").exists()


@pytest.mark.parametrize("number", [2, 3])
def test_the_same_bytes(recipe: dopkit.Recipe, alone: dopkit.Result, tmp_path: Path, number: int) -> None:
    results = together(number, lambda own: merge(recipe, tmp_path / "out", own))
    same(tmp_path / "out", alone.folder)
    receipts = [result.receipt for result in results]
    assert all(receipt == receipts[0] for receipt in receipts)
    assert receipts[0]["run"]["processes"] == number
    assert receipts[0]["shards"] == alone.receipt["shards"]
    for name, tensor in alone.receipt["tensors"].items():
        assert {**receipts[0]["tensors"][name], "seconds": 0} == {**tensor, "seconds": 0}
    again = together(number, lambda own: merge(recipe, tmp_path / "out", own))
    assert all(result.already_there for result in again)


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3), (3, 2)])
@pytest.mark.parametrize("tensors", [20, 70, 125])
def test_others_continue(
    recipe: dopkit.Recipe,
    alone: dopkit.Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: int,
    after: int,
    tensors: int,
) -> None:
    """Killed in either pass, and finished by more processes, or fewer; nothing that was finished is made again."""

    def by(number: int) -> list[Any]:
        if number == 1:
            return [merge(recipe, tmp_path / "out", ALONE)]
        return together(number, lambda own: merge(recipe, tmp_path / "out", own))

    with monkeypatch.context() as patch:
        kill_after(patch, tensors)
        with pytest.raises(Stopped):
            by(before)
    journals = list((tmp_path / "out.partial").glob("journal*.jsonl"))
    done = {line.split('"name": ')[1].split(",")[0] for path in journals for line in path.read_text().splitlines()
            if '"name"' in line}  # fmt: skip
    assert len(done) >= tensors
    made: list[str] = []
    complete = TensorWriter.complete

    def counting(self: TensorWriter, name: str, record: dict[str, Any]) -> None:
        made.append(json.dumps(self.key(name)))
        complete(self, name, record)

    with monkeypatch.context() as patch:
        patch.setattr(TensorWriter, "complete", counting)
        result = by(after)[0]
    assert result.receipt["run"]["resumed"]
    assert len(set(made) & done) <= 8 * before, "only jobs in hand are made again, with all their steps and state"
    same(tmp_path / "out", alone.folder)


def test_stages_are_shared_too(llama: Path, tmp_path: Path) -> None:
    documents = "\n---\n".join(
        [
            "name: both\nmerge_method: ties\nbase_model: ./base\nmodels: [./e0, ./e1]",
            "name: all\nmerge_method: dop\nbase_model: ./base\nmodels: [both, ./e2]",
        ]
    )
    recipe = dopkit.parse_recipe(documents, name="merged", folder=llama)
    options = dopkit.Options(keep_stages=True)
    dopkit.run(recipe, tmp_path / "alone", options)
    together(2, lambda own: merge(recipe, tmp_path / "out", own, options))
    for place in ("", "stages/both"):
        assert tiny.weights(tmp_path / "out" / place) == tiny.weights(tmp_path / "alone" / place)


def test_the_first_says_what_is_wrong(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """Who fails ends all, and the rest can be finished."""
    recipe = make_recipe(llama, ["e0", "nowhere"])
    with pytest.raises(PlanError, match="nowhere"):
        together(2, lambda own: merge(recipe, tmp_path / "out", own))
    assert not (tmp_path / "out.partial").exists()
    name = "model.layers.1.self_attn.v_proj.weight"
    broken = tiny.edit(
        llama / "e1",
        tmp_path / "broken",
        lambda tensors: {key: one * torch.nan if key == name else one for key, one in tensors.items()},
    )
    with pytest.raises(MergeError, match=name):
        together(
            2, lambda own: merge(make_recipe(llama, ["e0", os.path.relpath(broken, llama)]), tmp_path / "out", own)
        )


def test_processes_that_differ_are_refused(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    def differing(own: Processes) -> Any:
        return merge(make_recipe(llama, ["e0", "e1"] if own.first else ["e1", "e0"]), tmp_path / "out", own)

    with pytest.raises(PlanError, match=r"do not agree\n.*not the same for all"):
        together(2, differing)


def test_a_folder_that_is_not_shared_is_noticed(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    def elsewhere(own: Processes) -> Any:
        folder = tmp_path / str(own.rank)
        (folder / "out.partial").mkdir(parents=True)
        return merge(make_recipe(llama, ["e0", "e1"]), folder / "out", own)

    with pytest.raises(OutputError, match="storage that every machine shares"):
        together(2, elsewhere)


def test_lost_bytes_of_another_process_are_noticed(
    llama: Path, tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process says it has written is believed where the disk agrees."""
    write = TensorWriter.write

    def losing(self: TensorWriter, name: str, position: int, data: memoryview) -> None:
        write(self, name, position, data)
        if type(self) is TensorWriter:
            file, tensor = self._place[name]
            file.write(tensor.offset + position, memoryview(bytes(len(data))))

    monkeypatch.setattr(TensorWriter, "write", losing)
    with pytest.raises(OutputError, match="does not hold what another process wrote"):
        together(2, lambda own: merge(make_recipe(llama, ["e0", "e1"]), tmp_path / "out", own))


def test_one_sees_the_work_of_all(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    class Counting(Progress):
        total = 0
        done: list[str] = []

        def begin(self, tensors: int, nbytes: int, effort: float) -> None:
            self.total, self.nbytes = tensors, nbytes

        def advance(self, nbytes: int, effort: float) -> None:
            self.nbytes -= nbytes

        def tensor_done(self, name: str) -> None:
            self.done.append(name)

    seen, recipe = Counting(), make_recipe(llama, ["e0", "e1"], "average")

    def watched(own: Processes) -> dopkit.Result:
        options = dopkit.Options(processes=own)
        return dopkit.run(recipe, tmp_path / "out", options, seen if own.first else Progress())

    jobs = together(3, watched)[0].plan.jobs
    assert seen.total == len(jobs)
    assert sorted(seen.done) == sorted(job.name for job in jobs)
    assert seen.nbytes == 0


def test_what_one_process_must_do(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    several = dopkit.Options(processes=Processes(number=2))
    with pytest.raises(PlanError, match="an adapter is merged by one process"):
        dopkit.run(make_recipe(llama, ["e0"], output="adapter"), tmp_path / "out", several)
    with pytest.raises(PlanError, match="models are added by one process"):
        dopkit.add(tmp_path, [str(llama / "e0")], options=several)


def test_a_process_that_is_still_at_work_is_waited_for(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """The first may have been killed alone: its successor does not take over from one that still writes."""
    recipe = make_recipe(llama, ["e0", "e1"])
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "journal.jsonl").touch()
    left = GuestJournal(tmp_path / "out.partial", 1, "fingerprint")
    with pytest.raises(OutputError, match="another dopkit is writing"):
        dopkit.run(recipe, tmp_path / "out")
    left.close()
    dopkit.run(recipe, tmp_path / "out")


def test_memory_is_that_of_all_processes(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(llama, ["e0", "e1"])
    need = dopkit.plan(recipe).memory_bytes
    options = dopkit.Options(max_memory=2 * need + need // 2)
    dopkit.run(recipe, tmp_path / "two", dataclasses.replace(options, processes=Processes(here=2)))
    with pytest.raises(PlanError, match=r"Each of the 3 processes on this machine needs its own: start 2"):
        dopkit.run(recipe, tmp_path / "three", dataclasses.replace(options, processes=Processes(here=3)))


@pytest.mark.parametrize("number", [1, 2, 3, 7, 50])
def test_shares(llama: Path, make_recipe: MakeRecipe, number: int) -> None:
    """Every job once, in order within a share; no share is dearer than 4/3 of the least that the dearest can be."""
    jobs = dopkit.plan(make_recipe(llama, ["e0", "e1"], "dop")).jobs
    dealt = shares(jobs, number, merging_cost)
    assert len(dealt) == number
    place = {job.name: index for index, job in enumerate(jobs)}
    assert sorted(place[job.name] for own in dealt for job in own) == list(range(len(jobs)))
    assert all([place[job.name] for job in own] == sorted(place[job.name] for job in own) for own in dealt)

    def load(own: list[TensorJob]) -> float:
        return sum(map(merging_cost, own))

    least = max(load(list(jobs)) / number, max(map(merging_cost, jobs)))
    assert max(map(load, dealt)) <= least + max(map(merging_cost, jobs)) * (1 - 1 / number) + 1e-12
    assert dealt == shares(jobs, number, merging_cost)
