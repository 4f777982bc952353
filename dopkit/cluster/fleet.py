"""Workers as actors of Ray: one for each slot of a machine, so many as its CPUs, GPUs and memory allow.

The only importer of ray. Ray restarts nothing by itself here: who is lost is replaced by a new one.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from dopkit.cluster import Needs
from dopkit.cluster.crew import Hand, Reply
from dopkit.cluster.messages import Batch
from dopkit.errors import MergeError, PlanError, Problem
from dopkit.units import show_size

_LOOK_EVERY = 5.0  # seconds between looks for machines that have come
_MOST_FAILURES = 3  # to begin, of the workers of one machine
_REACHED_IN = 10.0  # seconds
_STORE_BYTES = 300_000_000  # of a cluster of our own, where little travels: its workers share the folder
# Read when ray is loaded. Its own messages would come between ours, and on the wrong stream; no usage report is sent;
# which GPUs a worker sees that asked for none is left as it is; and a wrong address shows after one minute, not twelve.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
    "RAY_NUM_REDIS_GET_RETRIES": "2",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def check(address: str | None) -> None:
    """As ``Ray.check``."""
    if importlib.util.find_spec("ray") is None:
        raise PlanError("ray is not installed", [Problem("", "", "pip install 'dopkit[ray]'")])
    address = address or os.environ.get("RAY_ADDRESS")
    if address in (None, "", "auto", "local"):
        return
    host, colon, port = address.rpartition(":")
    if "://" in address:
        remedy = "Run dopkit on a machine of the cluster, as `ray job submit` does, and give host:port or auto."
        raise PlanError(f"no Ray cluster at {address}", [Problem("", "that is an address for clients of Ray", remedy)])
    if not colon or not port.isdigit():
        raise PlanError(f"no Ray cluster at {address}", [Problem("", "an address is host:port, auto or local")])
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACHED_IN).close()
    except (OSError, OverflowError) as error:
        what = str(getattr(error, "strerror", None) or error)
        raise PlanError(f"no Ray cluster at {address}", [Problem("", what, _START)]) from error


@contextmanager
def opened(address: str | None, make: Callable[[Any], Any], order: Any, needs: Needs) -> Iterator[RayFleet]:
    """As ``Ray.open``."""
    with _connected(address) as ray:
        fleet = RayFleet(ray, make, order, needs)
        try:
            yield fleet
        finally:
            fleet.close()


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """The module ray, connected: by whoever calls us, or for this time. Raises PlanError."""
    check(address)
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET.items()})
    import ray

    if ray.is_initialized():
        yield ray
        return
    try:
        _join(ray, address)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        what = str(error).strip().partition("\n")[0]
        shown = address or os.environ.get("RAY_ADDRESS") or "auto"
        raise PlanError(f"cannot join the Ray cluster at {shown}", [Problem("", what, _JOIN)]) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _join(ray: Any, address: str | None) -> None:
    begin = partial(ray.init, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    try:
        if address != "local":
            begin(address or "auto")
            return
    except ConnectionError:
        if address or os.environ.get("RAY_ADDRESS"):
            raise
    begin("local", include_dashboard=False, object_store_memory=_STORE_BYTES)


class RayFleet:
    """Workers made by ``make``, a class that every machine can import, of ``order``."""

    def __init__(self, ray: Any, make: Callable[[Any], Any], order: Any, needs: Needs) -> None:
        self._ray, self._needs = ray, needs
        self._make, self._order = ray.remote(make), ray.put(order)
        self._actors: dict[Hand, Any] = {}
        self._nodes: dict[Hand, str] = {}
        self._asked: dict[Any, Hand] = {}  # by what Ray will answer to
        self._failures: Counter[str] = Counter()  # by machine
        self._looked = -_LOOK_EVERY

    def hire(self, most: int) -> Collection[Hand]:
        """Raises PlanError when no machine has room for a worker, MergeError when none can begin anywhere."""
        if time.monotonic() - self._looked < _LOOK_EVERY:
            return ()
        self._looked = time.monotonic()
        nodes = {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}
        if not self._actors and nodes and not any(self._needs.fit(node["Resources"]) for node in nodes.values()):
            raise PlanError("no machine of the cluster has room for a worker", [self._no_room(nodes.values())])
        able = [node for node in nodes if self._failures[node] < _MOST_FAILURES]
        if nodes and not able:
            raise MergeError("no worker can begin on the cluster", [Problem("", self._why, _INSTALL)])
        there = Counter(self._nodes.values())
        hands = []
        for node in able:
            room = min(self._needs.fit(nodes[node]["Resources"]) - there[node], most - len(self._actors))
            hands += [self._start(node, nodes[node]["NodeManagerHostname"]) for _ in range(room)]
        return hands

    def _start(self, node: str, name: str) -> Hand:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        hand = Hand(name)
        self._actors[hand] = actor = self._make.options(
            num_cpus=self._needs.cpus,
            num_gpus=self._needs.gpus,
            memory=self._needs.memory,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(self._needs.cpus)}},
        ).remote(self._order)
        self._nodes[hand] = node
        self._asked[actor.greet.remote()] = hand
        return hand

    def ask(self, hand: Hand, batch: Batch | None) -> None:
        self._asked[self._actors[hand].report.remote(batch)] = hand

    def wait(self, seconds: float) -> Sequence[tuple[Hand, Reply]]:
        if not self._asked:
            time.sleep(seconds)
            return []
        refs = list(self._asked)
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=seconds)
        if ready:
            ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        return [(hand, self._heard(hand, ref)) for ref in ready for hand in [self._asked.pop(ref)]]

    def _heard(self, hand: Hand, ref: Any) -> Reply:
        """What Ray brings. What a worker raises that is none of our errors is raised here, with its traceback."""
        exceptions = self._ray.exceptions
        try:
            reply: Reply = self._ray.get(ref)
        except exceptions.RayTaskError:
            raise
        except exceptions.RayError as error:
            if not hand.met:
                self._failures[self._nodes[hand]] += 1
                self._why = f"{hand.node}: {_last_line(str(error))}"
            self._ray.kill(self._actors.pop(hand))  # it may be cut off and alive
            del self._nodes[hand]
            return None
        return reply

    def close(self) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)

    def _no_room(self, nodes: Collection[dict[str, Any]]) -> Problem:
        needs = self._needs
        gpu = f", {needs.gpus} GPU" if needs.gpus else ""
        rooms = [
            f"{node['NodeManagerHostname']} has {node['Resources'].get('CPU', 0):.0f} CPUs, "
            f"{show_size(int(node['Resources'].get('memory', 0)))}"
            for node in nodes
        ]
        what = f"a worker needs {needs.cpus} CPUs, {show_size(needs.memory)} of memory{gpu}; {'; '.join(rooms)}"
        return Problem("", what, "Set OMP_NUM_THREADS to fewer threads, or use larger machines.")


def _last_line(text: str) -> str:
    return ([line.strip() for line in text.splitlines() if line.strip()] or ["no reason was given"])[-1]


_JOIN = "Is it one, with the same ray and Python as here? If it asks for a token, set RAY_AUTH_MODE=token here too."
_START = "Start one with `ray start --head`, or leave out --ray-address to use this machine alone."
_INSTALL = "Every machine needs the same Python, dopkit and ray."
