"""``--max-memory`` holds: the kernel's count of a process stays below it, and the least that the plan names will do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from adapters import make_adapter
from limited import Child, child, control_group, run_in
from safetensors.torch import save_file

import dopkit
from dopkit.device import choose
from dopkit.errors import PlanError
from dopkit.limits import MemoryLimit, parse_limit
from dopkit.measure import resident_bytes
from dopkit.units import parse_size

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts and limits of Linux")
SHAPE = (512, 896)

MERGES = {
    "average": "merge_method: average",
    "ties": "merge_method: ties",
    "exact": "merge_method: dop",
    "adam": "merge_method: dop\nparameters: {solver: adam, num_steps: 2}",
    "joint": "merge_method: karcher",
    "norm": "merge_method: opcm",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and two models of two matrices and a vector of 10 MB, and a recipe for each of the merges."""
    folder = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    shapes = {"layers.0.weight": SHAPE, "layers.1.weight": SHAPE[::-1], "scale": (2_500_000,)}
    base = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in ("base", "m0", "m1"):
        (folder / name).mkdir()
        change = 0.0 if name == "base" else 4e-4
        tensors = {key: one + change * torch.randn(one.shape, generator=generator) for key, one in base.items()}
        save_file(tensors, folder / name / "model.safetensors")
    for name, text in MERGES.items():
        (folder / f"{name}.yaml").write_text(f"base_model: ./base\nmodels: [./m0, ./m1]\n{text}\n")
    return folder


@pytest.fixture(scope="module")
def limited() -> Iterator[Child]:
    with child() as process:
        yield process


class Stopping(dopkit.Progress):
    """The user has had enough after one tensor."""

    def tensor_done(self, name: str) -> None:
        raise KeyboardInterrupt


def least(error: str) -> str:
    """What a refusal says would do."""
    found = re.search(r"`--max-memory (\S+)` would do", error)
    assert found, error
    return found[1]


@pytest.mark.parametrize("name", ["average", "ties", "exact", "adam", "joint"])
def test_the_least_that_the_plan_names_will_do_and_less_will_not(
    name: str, models: Path, limited: Child, tmp_path: Path
) -> None:
    recipe = models / f"{name}.yaml"
    free = limited.merge(recipe, tmp_path / "free")
    assert free["program"] < free["peak"] < free["needs"]
    enough = least(limited.merge(recipe, tmp_path / "out", "1MB")["error"])
    done = limited.merge(recipe, tmp_path / "out", enough, hard=0)
    assert "error" not in done, done
    assert done["needs"] < free["needs"]
    assert (free["parked"], done["parked"]) == (0, 2 if name == "exact" else 0)
    assert done["peak"] <= done["needs"] <= parse_size(enough)
    made = [tmp_path / out / "model.safetensors" for out in ("out", "free")]
    assert made[0].read_bytes() == made[1].read_bytes()
    below = limited.merge(recipe, tmp_path / "out", str(parse_size(enough) * 95 // 100))
    assert "too little memory" in below["error"]


def test_what_the_allocator_keeps_of_matrices_that_are_gone(limited: Child, tmp_path: Path) -> None:
    """Matrices below 32 MB: glibc keeps them, and between others in use finds no place for them again."""
    generator = torch.Generator().manual_seed(0)
    base = {f"layers.{number}.weight": 0.02 * torch.randn(1408, 2112, generator=generator) for number in range(4)}
    for name in ("base", "m0", "m1", "m2"):
        (tmp_path / name).mkdir()
        change = 0.0 if name == "base" else 4e-4
        tensors = {key: one + change * torch.randn(one.shape, generator=generator) for key, one in base.items()}
        save_file(tensors, tmp_path / name / "model.safetensors")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base_model: ./base\nmodels: [./m0, ./m1, ./m2]\nmerge_method: opcm\n")
    enough = least(limited.merge(recipe, tmp_path / "out", "1MB")["error"])
    done = limited.merge(recipe, tmp_path / "out", enough)
    assert done["peak"] <= done["needs"] <= parse_size(enough)


def test_adapters_stay_within_it_too(limited: Child, tmp_path: Path) -> None:
    base = tiny.make_llama(tmp_path / "base")
    for seed in range(2):
        make_adapter(base, tmp_path / f"a{seed}", seed=seed)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("merge_method: dop\nbase_model: ./base\nmodels: [./a0, ./a1]\noutput: adapter\n")
    enough = least(limited.merge(recipe, tmp_path / "out", "1MB")["error"])
    done = limited.merge(recipe, tmp_path / "out", enough, hard=0)
    assert done["peak"] <= done["needs"] <= parse_size(enough)
    below = limited.merge(recipe, tmp_path / "out", str(parse_size(enough) * 95 // 100))
    assert "too little memory" in below["error"]


def test_the_kernel_does_refuse(models: Path, limited: Child, tmp_path: Path) -> None:
    """The limit of these tests is one: without the room that the plan asks for a merge fails."""
    told = limited.merge(models / "exact.yaml", tmp_path / "out", hard=0)
    assert "error" not in told
    all_but_a_little = told["needs"] - told["program"] - 10_000_000
    assert "error" in limited.merge(models / "exact.yaml", tmp_path / "out", hard=all_but_a_little)


def test_a_control_group_of_that_size(models: Path, tmp_path: Path) -> None:
    with control_group(8_000_000_000) as group:  # a process of its own tells what such a one needs
        refused = run_in(group, "run", str(models / "exact.yaml"), "-o", str(tmp_path / "out"), "--max-memory", "1MB")
    error = refused.stderr
    enough, program = least(error), re.search(r"\((\S+) MB of it by the program itself\)", error)
    with control_group(parse_size(enough)) as group:
        done = run_in(group, "run", str(models / "exact.yaml"), "-o", str(tmp_path / "out"), "--max-memory", enough)
    assert done.returncode == 0, done.stdout + done.stderr
    assert program
    with control_group(int(program[1]) * 1_000_000 - 30_000_000) as group:  # too little, and the plan sees it
        done = run_in(group, "run", str(models / "exact.yaml"), "-o", str(tmp_path / "less"))
    assert done.returncode == 1
    assert "would do: free some, or use a larger machine" in done.stderr


@pytest.mark.parametrize("kept", ["nothing", "all", "but not that it loads"])
def test_what_transformers_takes_is_counted(kept: str, llama: Path, tmp_path: Path) -> None:
    """Whether it must be imported before the plan, after it, or not at all."""
    recipe, answers = llama / "counted.yaml", tmp_path / "cache" / "skeletons"
    recipe.write_text("base_model: ./base\nmodels: [./e0, ./e1]\nmerge_method: average\n")
    environment = {**os.environ, "DOPKIT_CACHE": "" if kept == "nothing" else str(tmp_path / "cache")}

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dopkit", "run", str(recipe), "-o", str(tmp_path / "out"), *options]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    if kept != "nothing":
        assert run("--overwrite").returncode == 0
        assert len(list(answers.iterdir())) == 2
    if kept == "but not that it loads":
        next(path for path in answers.iterdir() if "problems" in path.read_text()).unlink()
    enough = least(run("--overwrite", "--max-memory", "1MB").stderr)
    done = run("--overwrite", "--max-memory", enough)
    assert done.returncode == 0, done.stderr
    receipt = json.loads((tmp_path / "out" / "dopkit_receipt.json").read_text())
    assert receipt["run"]["peak_resident_bytes"] <= parse_size(enough)


def test_another_budget_continues_the_same_merge(models: Path) -> None:
    recipe = dopkit.load_recipe(models / "average.yaml")
    usual = dopkit.plan(recipe)
    program = usual.program_bytes
    small = dopkit.plan(recipe, options=dopkit.Options(max_memory=program + 95_000_000))
    assert len(list(small.jobs[0].parts())) > len(list(usual.jobs[0].parts()))
    assert small.fingerprint("cpu") == usual.fingerprint("cpu")
    assert small.memory_bytes < usual.memory_bytes - 60_000_000
    assert 0 < small.work_bytes < 20_000_000


def test_a_merge_is_continued_with_another_limit(models: Path, tmp_path: Path) -> None:
    """Its blocks are then others than those of what is there already."""
    recipe = dopkit.load_recipe(models / "average.yaml")
    small = dopkit.Options(max_memory=resident_bytes() + 95_000_000)
    with pytest.raises(KeyboardInterrupt):
        dopkit.run(recipe, tmp_path / "out", small, Stopping())
    result = dopkit.run(recipe, tmp_path / "out")
    assert result.receipt["run"]["resumed"]
    dopkit.run(recipe, tmp_path / "whole")
    made = [tmp_path / out / "model.safetensors" for out in ("out", "whole")]
    assert made[0].read_bytes() == made[1].read_bytes()


def test_a_merge_is_continued_with_matrices_on_the_disk(models: Path, tmp_path: Path) -> None:
    recipe = dopkit.load_recipe(models / "exact.yaml")
    with pytest.raises(KeyboardInterrupt):
        dopkit.run(recipe, tmp_path / "out", progress=Stopping())
    with pytest.raises(PlanError) as error:
        dopkit.plan(recipe, options=dopkit.Options(max_memory=1_000_000))
    small = dopkit.Options(max_memory=parse_size(least(str(error.value))) + 15_000_000)
    plan = dopkit.plan(recipe, tmp_path / "out", small)
    assert sum(job.parked for job in plan.jobs) == 2
    result = dopkit.run(recipe, tmp_path / "out", small)
    assert result.receipt["run"]["resumed"]
    dopkit.run(recipe, tmp_path / "whole")
    made = [tmp_path / out / "model.safetensors" for out in ("out", "whole")]
    assert made[0].read_bytes() == made[1].read_bytes()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }


def test_what_is_added_up_block_by_block_keeps_its_blocks(models: Path) -> None:
    recipe = dopkit.load_recipe(models / "norm.yaml")
    usual = dopkit.plan(recipe)
    least_options = dopkit.Options(max_memory=usual.memory_bytes - 60_000_000)
    small = dopkit.plan(recipe, options=least_options)
    assert small.buffers != usual.buffers
    assert [list(job.parts()) for job in small.jobs] == [list(job.parts()) for job in usual.jobs]


def test_limits_are_read() -> None:
    assert parse_limit("8GB") == MemoryLimit(host=8_000_000_000)
    assert parse_limit("cpu=8GB,cuda=16 GB") == MemoryLimit(8_000_000_000, 16_000_000_000, "cuda")
    assert parse_limit("mps=1g") == MemoryLimit(None, 1_000_000_000, "mps")
    assert MemoryLimit.of(5) == MemoryLimit(host=5)
    assert MemoryLimit.of(None) == MemoryLimit()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("lots", "is not a size"),
        ("gpu=8GB", "names none of cpu, cuda, mps"),
        ("cpu=8GB,cpu=4GB", "cpu is given twice"),
        ("cuda=8GB,mps=8GB", "give cuda or mps, not both"),
        ("cpu=", "is not a size"),
        ("cpu=8GB,", "names none of"),
    ],
)
def test_limits_that_are_none(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_limit(text)


def test_a_limit_for_a_device_that_is_not_used_is_refused() -> None:
    with pytest.raises(PlanError, match=r"it is for cuda, and this runs on cpu\n.*Leave cuda= out"):
        choose("cpu", limit=parse_limit("cuda=16GB"))
