"""What is refused before Ray is asked, what a machine has room for; a real cluster, a machine of which is killed."""

from __future__ import annotations

import dataclasses
import importlib.util
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from click.testing import CliRunner

import dopkit
from dopkit.cli import main
from dopkit.cluster import Needs, Ray
from dopkit.cluster.fleet import QUIET
from dopkit.errors import PlanError
from dopkit.progress import Progress

MakeRecipe = Callable[..., dopkit.Recipe]
GB = 10**9


@pytest.mark.parametrize(
    ("needs", "machine", "workers"),
    [
        (Needs(1, GB), {"CPU": 8.0, "memory": 5.5 * GB}, 5),
        (Needs(2, GB), {"CPU": 8.0, "memory": 5.5 * GB}, 4),
        (Needs(1, GB, memory_here=2 * GB), {"CPU": 8.0, "memory": 5.5 * GB}, 2),
        (Needs(1, GB, gpus=1), {"CPU": 8.0, "memory": 5.5 * GB, "GPU": 4.0}, 4),
        (Needs(1, GB, gpus=1), {"CPU": 8.0, "memory": 5.5 * GB}, 0),
        (Needs(16, GB), {"CPU": 8.0, "memory": 5.5 * GB}, 0),
        (Needs(1, GB), {"memory": 5.5 * GB}, 0),
    ],
)
def test_how_many_fit(needs: Needs, machine: dict[str, float], workers: int) -> None:
    assert needs.fit(machine) == workers


def test_without_ray_one_sentence(
    llama: Path, tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PlanError, match=r"ray is not installed\n.*pip install 'dopkit\[ray\]'"):
        dopkit.run(make_recipe(llama, ["e0"]), tmp_path / "out", dopkit.Options(cluster=Ray()))
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("ray://127.0.0.1:10001", "an address for clients of Ray"),
        ("127.0.0.1", "an address is host:port"),
        ("127.0.0.1:x", "an address is host:port"),
        ("127.0.0.1:99999", "no Ray cluster at 127.0.0.1:99999"),
        ("127.0.0.1:{free}", "Connection refused"),
    ],
)
def test_bad_addresses_are_told_at_once(address: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = address.format(free=free.getsockname()[1])
        with pytest.raises(PlanError, match=what):
            Ray(address).check()
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(PlanError, match=what):
            Ray().check()


STORE = {"object_store_memory": 80 * 2**20}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that has no room for workers, and two machines with room for one each."""
    for name, value in {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **QUIET}.items():
        monkeypatch.setenv(name, value)
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    started = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **STORE})
    try:
        started.machines = [started.add_node(num_cpus=1, **STORE) for _ in range(2)]
        yield started
    finally:
        started.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore:subprocess .* is still:ResourceWarning")
def test_a_machine_is_killed_in_the_middle(
    cluster: Any, llama: Path, tmp_path: Path, make_recipe: MakeRecipe, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    recipe = make_recipe(llama, ["e0", "e1", "e2"], parameters={"solver": "adam", "num_steps": 600, "scale": "norm"})
    options = dopkit.Options(save_steps=True, keep_state=True, max_shard_size=6000)

    class Killing(Progress):
        """Kills a machine, as a power cut does, when both have made something."""

        def __init__(self) -> None:
            self.notes: list[str] = []
            self.begun = 0

        def tensor(self, name: str) -> None:
            self.begun += 1
            if self.begun == 4:
                cluster.remove_node(cluster.machines[0], allow_graceful=False)
            if self.begun == 12 and not self.lost:  # its worker was slow and had nothing in hand: the other one has
                cluster.add_node(num_cpus=1, **STORE)
                cluster.remove_node(cluster.machines[1], allow_graceful=False)

        def note(self, text: str) -> None:
            self.notes.append(text)

        @property
        def lost(self) -> int:
            return sum("is lost, " in note for note in self.notes)

    seen = Killing()
    try:
        alone = dopkit.run(recipe, tmp_path / "alone", options)
        far = dopkit.run(recipe, tmp_path / "out", dataclasses.replace(options, cluster=Ray(cluster.address)), seen)
    finally:
        torch.set_num_threads(threads)
    assert "2 workers on" in seen.notes[0]
    assert seen.lost, seen.notes
    for place in ("", "steps/01", "steps/02", "state"):
        assert tiny.weights(tmp_path / "out" / place) == tiny.weights(tmp_path / "alone" / place), place
    assert far.receipt["shards"] == alone.receipt["shards"]
    assert "raylet" not in capfd.readouterr().out


def test_on_the_command_line(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"base_model: {llama}/base\nmerge_method: dop\nmodels: [{llama}/e0, {llama}/e1]\n")
    alone = CliRunner().invoke(main, ["run", str(recipe), "--ray-address", "127.0.0.1:1"])
    assert alone.exit_code == 2 and "--ray-address needs --executor ray" in alone.output
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    refused = CliRunner().invoke(main, ["run", str(recipe), "--executor", "ray", "--ray-address", "ray://here:1"])
    assert refused.exit_code == 1 and "no Ray cluster at ray://here:1" in refused.output
