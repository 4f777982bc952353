"""Unit tests for dopkit.measure: numbers that the kernel counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dopkit import measure


def test_peak_is_at_least_what_is_resident() -> None:
    before = measure.resident_bytes()
    block = bytearray(b"\1" * 64_000_000)
    assert measure.resident_bytes() > 10_000_000
    peak = measure.peak_resident_bytes()
    assert peak >= before
    del block
    assert measure.peak_resident_bytes() >= peak * 0.99  # it does not fall again


def test_peak_without_proc_comes_from_the_process_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    by_status = measure.peak_resident_bytes()
    monkeypatch.setattr(measure, "_STATUS", tmp_path / "none")
    by_usage = measure.peak_resident_bytes()
    assert by_usage > 0.5 * by_status  # the same unit, at least


Group = Callable[..., Path]


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Group:
    """``group("0::/job", "job", limit, used, cached)`` puts the process into a control group of version 2 (or 1)."""
    monkeypatch.setattr(measure, "_CGROUP", tmp_path)
    monkeypatch.setattr(measure, "_GROUPS", tmp_path / "groups")

    def make(groups: str, folder: str, limit: object, used: int, cached: int = 0, version: int = 2) -> Path:
        (tmp_path / "groups").write_text(groups + "\n")
        names = measure._VERSION_2 if version == 2 else measure._VERSION_1
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, value in zip([*names[:2], "memory.stat"], [limit, used, f"anon 5\n{names[2]} {cached}"], strict=True):
            (tmp_path / folder / name).write_text(f"{value}\n")
        return tmp_path

    return make


def test_available_memory_is_that_of_the_machine(group: Group, tmp_path: Path) -> None:
    total = psutil.virtual_memory().total
    assert 0 < measure.available_bytes() <= total  # a system without control groups
    group("0::/", ".", "max", 1000)
    assert 1_000_000 < measure.available_bytes() <= total


def test_available_memory_is_that_of_the_container(group: Group) -> None:
    group("0::/", ".", 2_000_000, 1_500_000, cached=300_000)
    assert measure.available_bytes() == 800_000
    group("0::/", ".", 2_000_000, 2_500_000)
    assert measure.available_bytes() == 0


def test_available_memory_is_that_of_the_tightest_group_around(group: Group) -> None:
    group("0::/jobs/7/step", "jobs/7/step", "max", 100)
    group("0::/jobs/7/step", "jobs/7", 5_000_000, 1_000_000)
    group("0::/jobs/7/step", "jobs", 9_000_000, 1_000_000)
    assert measure.available_bytes() == 4_000_000


def test_control_groups_of_version_1_count_too(group: Group) -> None:
    lines = "11:cpu,cpuacct:/\n4:memory:/docker/0123\n1:name=systemd:/"
    group(lines, "memory", 3_000_000, 1_000_000, cached=500_000, version=1)  # the container's own, seen as the root
    assert measure.available_bytes() == 2_500_000
