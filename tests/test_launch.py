"""`accelerate launch -m dopkit run`, as it is: real processes that meet on the loopback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import tiny
import torch

pytestmark = pytest.mark.slow


def write_recipe(models: Path, folder: Path, last: str = "e2", method: str = "{scale: norm}") -> Path:
    file = folder / "recipe.yaml"
    experts = ", ".join([f"{models}/e0", f"{models}/e1", last if "/" in last else f"{models}/{last}"])
    file.write_text(f"base_model: {models}/base\nmerge_method: dop\nmodels: [{experts}]\nparameters: {method}\n")
    return file


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def alone(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dopkit", *map(str, words)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)


def start(number: int, *words: object) -> subprocess.Popen[str]:
    """Start dopkit in so many processes. On a machine without a GPU that is how accelerate is asked for several."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    how = f"--multi_gpu --num_processes {number} --num_machines 1 --mixed_precision no --dynamo_backend no"
    launch = [sys.executable, "-m", "accelerate.commands.launch", *how.split(), "--main_process_port", str(port)]
    command = [*launch, "-m", "dopkit", *map(str, words)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(child: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The exit code and what was printed; it may not hang."""
    out, err = child.communicate(timeout=200)
    return child.returncode, out, err


def kill_all(child: subprocess.Popen[str]) -> None:
    """SIGKILL for the launcher and all that it started, at once."""
    everyone = [*psutil.Process(child.pid).children(recursive=True), child]
    for one in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            os.kill(one.pid, signal.SIGKILL)
    child.communicate()
    psutil.wait_procs([one for one in everyone if isinstance(one, psutil.Process)], timeout=30)


def test_three_processes_give_the_bytes_of_one(llama: Path, tmp_path: Path) -> None:
    recipe = write_recipe(llama, tmp_path)
    how = ["--save-steps", "--keep-state", "--max-shard-size", "6000"]
    assert alone("run", recipe, "-o", tmp_path / "alone", *how).returncode == 0
    code, out, err = finish(start(3, "run", recipe, "-o", tmp_path / "out", *how))
    assert code == 0, err
    assert out.count("merged 21 tensors") == 1 and err.count("verifying") == 1, "one process speaks"
    for folder in ("", "steps/01", "steps/02"):
        assert tiny.weights(tmp_path / "out" / folder) == tiny.weights(tmp_path / "alone" / folder), folder
    receipt = json.loads((tmp_path / "out" / "dopkit_receipt.json").read_text())
    assert receipt["run"]["processes"] == 3


def test_killed_together_and_finished_alone(llama: Path, tmp_path: Path) -> None:
    recipe = write_recipe(llama, tmp_path, method="{solver: adam, num_steps: 2000}")
    child = start(2, "run", recipe, "-o", tmp_path / "out")
    guest = tmp_path / "out.partial" / "journal.1.jsonl"
    end = time.monotonic() + 150
    while not (guest.exists() and guest.read_text().count('"name"') > 1):
        assert child.poll() is None and time.monotonic() < end, child.communicate()
        time.sleep(0.02)
    kill_all(child)
    assert guest.exists(), "the kill came too late"
    done = alone("run", recipe, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "continuing: " in done.stderr
    assert alone("run", recipe, "-o", tmp_path / "alone").returncode == 0
    assert tiny.weights(tmp_path / "out") == tiny.weights(tmp_path / "alone")


def test_one_that_fails_ends_all(llama: Path, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.v_proj.weight"
    broken = tiny.edit(
        llama / "e2",
        tmp_path / "broken",
        lambda tensors: {key: one * torch.nan if key == name else one for key, one in tensors.items()},
    )
    code, out, err = finish(start(2, "run", write_recipe(llama, tmp_path, str(broken)), "-o", tmp_path / "out"))
    assert code == 1
    assert err.count(f"cannot merge {name}") == 1
    assert not out and not (tmp_path / "out").exists()
    code, out, err = finish(start(2, "run", write_recipe(llama, tmp_path, "nowhere"), "-o", tmp_path / "other"))
    assert code == 1
    assert err.count("there is no such folder") == 1
