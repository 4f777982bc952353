"""Merges in a child process with a limit: the kernel's own count of what it took, and the kernel's own refusal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Merges one recipe after another, each in a fork of its own, and prints what the kernel has counted.
# A first plan makes the imports for all of them.
_CHILD = """
import json, os, resource, sys
from pathlib import Path
import dopkit
from dopkit.cli.output import parse_limit
from dopkit.errors import DopkitError
from dopkit.measure import peak_resident_bytes, resident_bytes

def kernel(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

def work(recipe, out, most, hard):
    options = dopkit.Options(max_memory=most and parse_limit(most).host, overwrite=True)
    loaded = dopkit.load_recipe(recipe)
    plan = dopkit.plan(loaded, out, options)
    if hard is not None:  # what is private and writable may grow by what the plan leaves it, not by a byte more
        room = kernel("VmData") + (parse_limit(most).host if most else plan.memory_bytes) - resident_bytes() - hard
        resource.setrlimit(resource.RLIMIT_DATA, (room, room))
    dopkit.run(loaded, out, options)
    peak = peak_resident_bytes()
    parked = sum(job.parked for job in plan.jobs)
    return {"needs": plan.memory_bytes, "program": plan.program_bytes, "peak": peak, "parked": parked}

for line in sys.stdin:
    dopkit.plan(dopkit.load_recipe(json.loads(line)["recipe"]), "nowhere")
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
            told = work(**json.loads(line))
        except DopkitError as error:
            told = {"error": str(error)}
        except MemoryError:
            told = {"error": "MemoryError"}
        except RuntimeError as error:
            told = {"error": f"RuntimeError: {error}"}
        os.write(write, json.dumps(told).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        told = answer.read()
    os.wait()
    print(told or json.dumps({"error": "killed"}), flush=True)
"""


@dataclass
class Child:
    """A process that merges on request."""

    process: subprocess.Popen[str]

    def merge(self, recipe: Path, out: Path, most: str | None = None, hard: int | None = None) -> dict[str, Any]:
        """What the kernel counted, and what the plan had said; or ``error``.

        ``most`` is a ``--max-memory``; with ``hard`` the kernel gives no more than that, or
        than the plan says, less so many bytes.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        asked = {"recipe": str(recipe), "out": str(out), "most": most, "hard": hard}
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        told: dict[str, Any] = json.loads(self.process.stdout.readline())
        return told


@contextmanager
def child() -> Iterator[Child]:
    """Such a process, with one thread: a pool of them would not live on in a fork."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _CHILD]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Child(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


@contextmanager
def control_group(limit: int) -> Iterator[Path]:
    """A control group that may hold so many bytes; skips the test where none can be made."""
    second = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    root, field = Path("/sys/fs/cgroup"), "memory.max"
    if not second:
        root, field = root / "memory", "memory.limit_in_bytes"
    group = root / f"dopkit-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error.strerror}")
    try:
        try:
            (group / field).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"no memory limit for a control group here: {error.strerror}")
        yield group
    finally:
        group.rmdir()


def run_in(group: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``dopkit`` with these arguments, as a process of this group."""
    joining = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0'); from dopkit.cli import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", joining, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)
