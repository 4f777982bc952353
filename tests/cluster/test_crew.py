"""Workers do the jobs of a merge: however many, wherever they write, whoever is lost, the bytes are those of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hubserver import TestHub, connect
from played_cluster import PlayedCluster

import dopkit
from dopkit.cluster import crew
from dopkit.errors import MergeError, PlanError
from dopkit.measure import resident_bytes
from dopkit.processes import Processes
from dopkit.progress import Progress
from dopkit.writer import Journal

MakeRecipe = Callable[..., dopkit.Recipe]
EVERYTHING = dopkit.Options(max_shard_size=6000, save_steps=True, keep_state=True)
FOLDERS = ("", "steps/01", "steps/02", "state")


class Stopped(BaseException):
    """Stands in for a kill of the leading process."""


@pytest.fixture(scope="module", params=["opcm", "dop"])
def recipe(request: pytest.FixtureRequest, vit: Path, make_recipe: MakeRecipe) -> dopkit.Recipe:
    """A method that keeps its state, or one whose scale takes a second pass."""
    parameters = {"scale": "norm"} if request.param == "dop" else {}
    return make_recipe(vit, ["e0", "e1", "e2"], request.param, parameters=parameters)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, recipe: dopkit.Recipe) -> dopkit.Result:
    return dopkit.run(recipe, tmp_path_factory.mktemp("alone") / "alone", EVERYTHING)


def by(cluster: PlayedCluster, recipe: dopkit.Recipe, out: Path, options: dopkit.Options = EVERYTHING) -> dopkit.Result:
    return dopkit.run(recipe, out, replace(options, cluster=cluster))


def same(folder: Path, other: Path) -> None:
    for place in FOLDERS:
        assert tiny.weights(folder / place) == tiny.weights(other / place), place
    assert (folder / "dopkit_state.json").read_bytes() == (other / "dopkit_state.json").read_bytes()
    assert not list(folder.glob("journal*")) and not list(folder.glob("*token")) and not (folder / "unscaled").exists()


@pytest.mark.parametrize("apart", [(), (0, 1, 2), (1,)], ids=["shared", "returned", "mixed"])
def test_the_same_bytes(recipe: dopkit.Recipe, alone: dopkit.Result, tmp_path: Path, apart: tuple[int, ...]) -> None:
    cluster = PlayedCluster(3, apart)
    result = by(cluster, recipe, tmp_path / "out")
    same(tmp_path / "out", alone.folder)
    assert result.receipt["run"]["processes"] == 3
    assert result.receipt["shards"] == alone.receipt["shards"]
    for name, tensor in alone.receipt["tensors"].items():
        assert {**result.receipt["tensors"][name], "seconds": 0} == {**tensor, "seconds": 0}
    assert by(cluster, recipe, tmp_path / "out").already_there


@pytest.mark.parametrize("apart", [(), range(100)], ids=["shared", "returned"])
def test_who_is_lost_is_replaced(recipe: dopkit.Recipe, alone: dopkit.Result, tmp_path: Path, apart: Any) -> None:
    """The first workers are lost one after another, the second of them while it opens the models."""
    notes: list[str] = []

    class Listening(Progress):
        def note(self, text: str) -> None:
            notes.append(text)

    unlucky: set[str] = set()  # jobs that went with a worker: no job goes with three, however slow it is

    def loses(number: int, calls: int, jobs: Sequence[str]) -> bool:
        if number > 3 or calls <= (3, 0, 4, 5)[number] or unlucky & set(jobs):
            return False
        unlucky.update(jobs)
        return True

    cluster = PlayedCluster(2, apart, loses)
    dopkit.run(recipe, tmp_path / "out", replace(EVERYTHING, cluster=cluster), Listening())
    assert cluster.hired == 6
    assert sum("is lost" in note for note in notes) == 3
    same(tmp_path / "out", alone.folder)


def test_a_job_that_takes_its_workers_along(recipe: dopkit.Recipe, alone: dopkit.Result, tmp_path: Path) -> None:
    """It is named when the third one is lost; what was finished stays, and another run goes on."""
    fatal = alone.plan.jobs[5].name
    cluster = PlayedCluster(2, loses=lambda number, calls, jobs: fatal in jobs)
    with pytest.raises(MergeError, match=f"3 workers were lost while they merged {fatal}"):
        by(cluster, recipe, tmp_path / "out")
    assert cluster.dealt.count([fatal]) == 2, "after the first loss it comes alone"
    result = dopkit.run(recipe, tmp_path / "out", EVERYTHING)
    assert result.receipt["run"]["resumed"]
    same(tmp_path / "out", alone.folder)


@pytest.mark.parametrize("tensors", [20, 125])
@pytest.mark.parametrize("apart", [(), range(100)], ids=["shared", "returned"])
@pytest.mark.parametrize("first", ["cluster", "alone"])
def test_others_continue(
    recipe: dopkit.Recipe,
    alone: dopkit.Result,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tensors: int,
    apart: Any,
    first: str,
) -> None:
    """The leading process is killed in either pass; with a cluster or without, the rest is made, and only that."""
    append, lines = Journal.append, [0]

    def dying(self: Journal, entry: dict[str, Any]) -> None:
        lines[0] += "name" in entry
        if lines[0] > tensors:
            raise Stopped
        append(self, entry)

    runs = [EVERYTHING, replace(EVERYTHING, cluster=PlayedCluster(2, apart))]
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", dying)
        with pytest.raises(Stopped):
            dopkit.run(recipe, tmp_path / "out", runs[first == "cluster"])
    written = (tmp_path / "out.partial" / "journal.jsonl").read_text().count('"name"')
    assert written >= min(tensors, 20)
    result = dopkit.run(recipe, tmp_path / "out", runs[first == "alone"])
    assert result.receipt["run"]["resumed"]
    same(tmp_path / "out", alone.folder)


def test_stages(llama: Path, tmp_path: Path) -> None:
    documents = "\n---\n".join(
        [
            "name: both\nmerge_method: ties\nbase_model: ./base\nmodels: [./e0, ./e1]",
            "name: all\nmerge_method: dop\nbase_model: ./base\nmodels: [both, ./e2]",
        ]
    )
    recipe = dopkit.parse_recipe(documents, name="merged", folder=llama)
    options = dopkit.Options(keep_stages=True)
    dopkit.run(recipe, tmp_path / "alone", options)
    by(PlayedCluster(2, (1,)), recipe, tmp_path / "out", options)
    for place in ("", "stages/both"):
        assert tiny.weights(tmp_path / "out" / place) == tiny.weights(tmp_path / "alone" / place)


def test_random_methods_and_drawn_orders(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(llama, ["e0", "e1", "e2"], "dare_ties", order="shuffle", seed=3, parameters={"density": 0.5})
    dopkit.run(recipe, tmp_path / "alone")
    by(PlayedCluster(2), recipe, tmp_path / "out", dopkit.Options())
    assert tiny.weights(tmp_path / "out") == tiny.weights(tmp_path / "alone")


def test_what_a_worker_raises_is_said_as_ever(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    name = "model.layers.1.self_attn.v_proj.weight"
    broken = tiny.edit(
        llama / "e1",
        tmp_path / "broken",
        lambda tensors: {key: one * torch.nan if key == name else one for key, one in tensors.items()},
    )
    recipe = make_recipe(llama, ["e0", os.path.relpath(broken, llama)])
    with pytest.raises(MergeError) as local:
        dopkit.run(recipe, tmp_path / "alone")
    with pytest.raises(MergeError) as far:
        by(PlayedCluster(2), recipe, tmp_path / "out", dopkit.Options())
    assert str(far.value) == str(local.value) and name in str(far.value)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"engine": "cpu torch-1"}, "it would give different bytes: cpu torch-1, and this is cpu torch-"),
        ({"fingerprint": "other"}, "it finds other models there"),
        ({"version": "0.0.1"}, "it has dopkit 0.0.1, and this is"),
    ],
)
def test_workers_that_differ_are_refused(
    llama: Path, tmp_path: Path, make_recipe: MakeRecipe, change: dict[str, str], what: str
) -> None:
    cluster = PlayedCluster(2, greets=lambda greeting: replace(greeting, **change))
    with pytest.raises(PlanError, match=f"does not agree.*\n.*node0: {what}"):
        by(cluster, make_recipe(llama, ["e0", "e1"]), tmp_path / "out", dopkit.Options())


def test_nobody_comes(llama: Path, tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew.Crew.__init__, "__defaults__", (0.1,))
    cluster = PlayedCluster(2, loses=lambda number, calls, jobs: True, most=4)
    with pytest.raises(MergeError, match="no worker of the cluster is left"):
        by(cluster, make_recipe(llama, ["e0", "e1"]), tmp_path / "out", dopkit.Options())


def test_one_sees_the_work_of_all(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    class Counting(Progress):
        total = 0
        nbytes = 0
        effort = 0.0

        def __init__(self) -> None:
            self.done: list[str] = []

        def begin(self, tensors: int, nbytes: int, effort: float) -> None:
            self.total, self.nbytes, self.effort = tensors, nbytes, effort

        def advance(self, nbytes: int, effort: float) -> None:
            self.nbytes -= nbytes
            self.effort -= effort

        def tensor_done(self, name: str) -> None:
            self.done.append(name)

    seen = Counting()
    cluster = PlayedCluster(3, loses=lambda number, calls, jobs: number == 1 and calls > 2)
    recipe = make_recipe(llama, ["e0", "e1"], "average")
    result = dopkit.run(recipe, tmp_path / "out", dopkit.Options(cluster=cluster), seen)
    assert seen.total == len(result.plan.jobs)
    assert sorted(seen.done) == sorted(job.name for job in result.plan.jobs), "each once, though some were made twice"
    assert seen.nbytes == 0 and abs(seen.effort) < 1e-9


def test_what_a_worker_is_asked_to_take(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    cluster, most = PlayedCluster(1), resident_bytes() + 10**9  # this process has run other tests
    recipe = make_recipe(llama, ["e0", "e1"])
    result = by(cluster, recipe, tmp_path / "out", dopkit.Options(max_memory=most))
    assert cluster.needs is not None
    assert cluster.needs.cpus == torch.get_num_threads() and cluster.needs.gpus == 0
    assert result.plan.memory_bytes < cluster.needs.memory < most and cluster.needs.memory_here == most


def test_what_a_cluster_does_not_do(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    options = dopkit.Options(cluster=PlayedCluster())
    with pytest.raises(PlanError, match="an adapter is merged by one process"):
        dopkit.run(make_recipe(llama, ["e0"], output="adapter"), tmp_path / "out", options)
    with pytest.raises(PlanError, match="models are added by one process"):
        dopkit.add(tmp_path, [str(llama / "e0")], options=options)
    with pytest.raises(PlanError, match="by a cluster or by processes that were launched"):
        recipe = make_recipe(llama, ["e0", "e1"])
        dopkit.run(recipe, tmp_path / "out", replace(options, processes=Processes(number=2)))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llama: Path) -> Iterator[TestHub]:
    """With ``user/base`` and two experts."""
    with TestHub() as server:
        connect(monkeypatch, server, tmp_path / "cache")
        for name in ("base", "e0", "e1"):
            server.create_repo(f"user/{name}", {path.name: path.read_bytes() for path in (llama / name).iterdir()})
        yield server
        assert server.crashes == []


@pytest.mark.parametrize("stream", [False, True], ids=["downloaded", "streamed"])
def test_models_on_the_hub(server: TestHub, llama: Path, tmp_path: Path, make_recipe: MakeRecipe, stream: bool) -> None:
    """Workers read them at the commits of the leading process, though a branch has moved since."""
    text = "base_model: user/base\nmerge_method: dop\nmodels: [user/e0, user/e1]"
    recipe = dopkit.parse_recipe(text, name="merged", folder=tmp_path)

    class Moving(PlayedCluster):
        @contextmanager
        def open(self, *given: Any) -> Iterator[Any]:
            path = llama / "e3"
            server.upload("user/e1", {file.name: file.read_bytes() for file in path.glob("*.safetensors")})
            with super().open(*given) as fleet:
                yield fleet

    by(Moving(2, (1,)), recipe, tmp_path / "out", dopkit.Options(stream=stream))
    dopkit.run(make_recipe(llama, ["e0", "e1"]), tmp_path / "alone")
    assert tiny.weights(tmp_path / "out") == tiny.weights(tmp_path / "alone")


def test_shards_that_leave_the_disk_are_for_one_process(
    server: TestHub, llama: Path, tmp_path: Path, make_recipe: MakeRecipe
) -> None:
    push = dopkit.PushOptions(repo_id="user/merged")
    options = dopkit.Options(cluster=PlayedCluster(), push=push, stream=True)
    with pytest.raises(PlanError, match="need the whole output on the disk"):
        dopkit.run(make_recipe(llama, ["e0", "e1"]), tmp_path / "out", options)
