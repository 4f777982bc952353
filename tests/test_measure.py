"""Unit tests for dopkit.measure: numbers that the kernel counts."""

from __future__ import annotations

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


def test_available_memory_is_that_of_the_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measure, "_CGROUP", tmp_path)
    total = psutil.virtual_memory().total
    assert 0 < measure.available_bytes() <= total  # no limit stated

    (tmp_path / "memory.max").write_text("2000000\n")
    (tmp_path / "memory.current").write_text("1500000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\ninactive_file 300000\n")
    assert measure.available_bytes() == 800_000

    (tmp_path / "memory.current").write_text("2500000\n")
    assert measure.available_bytes() == 0

    (tmp_path / "memory.max").write_text("max\n")
    assert 2_000_000 < measure.available_bytes() <= total
