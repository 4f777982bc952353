"""docs/benchmarks/suite on tiny sizes, without its peers: it measures what the kernel counts, and continues."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "docs" / "benchmarks" / "suite"
MODULES = ("machine", "measure", "floor", "models", "environments", "elementwise", "dop", "table", "run")


@pytest.fixture(scope="module")
def suite() -> Iterator[dict[str, ModuleType]]:
    """The suite's scripts, which are no package: they find each other by their folder."""
    sys.path.insert(0, str(FOLDER))
    before = set(sys.modules)
    try:
        yield {name: __import__(name) for name in MODULES}
    finally:
        sys.path.remove(str(FOLDER))
        for name in set(MODULES) - before:
            sys.modules.pop(name, None)


def test_what_a_child_takes_is_what_it_took(suite: dict[str, ModuleType], tmp_path: Path) -> None:
    code = (
        "import sys, time\nblock = b'x' * 64_000_000\nopen(sys.argv[1], 'wb').write(block)\n"
        "open(sys.argv[1], 'rb').read(5_000_000)\ntime.sleep(0.3)"
    )
    found = suite["measure"].run([sys.executable, "-c", code, str(tmp_path / "file")], tmp_path / "log")
    assert found.wall_seconds >= 0.3 > found.cpu_seconds - 0.3
    assert 64e6 <= found.peak_bytes < 200e6
    assert 64e6 <= found.asked_written < 65e6
    assert 5e6 <= found.asked_read < 64e6


def test_children_of_a_child_count(suite: dict[str, ModuleType], tmp_path: Path) -> None:
    inner = (
        f"import time; block = b'x' * 80_000_000; open({str(tmp_path / 'file')!r}, 'wb').write(block); time.sleep(0.2)"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    found = suite["measure"].run([sys.executable, "-c", code], tmp_path / "log")
    assert found.peak_bytes >= 80e6
    assert found.asked_written >= 80e6


def test_a_child_that_fails_is_no_measurement(suite: dict[str, ModuleType], tmp_path: Path) -> None:
    with pytest.raises(suite["measure"].ChildFailed, match="the reason"):
        suite["measure"].run([sys.executable, "-c", "raise SystemExit('the reason')"], tmp_path / "log")


def test_the_floor_reads_everything_and_writes_as_much_as_is_asked(
    suite: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite["floor"], "BUFFER", 1000)
    inputs = [tmp_path / "one", tmp_path / "two"]
    inputs[0].write_bytes(bytes(range(256)) * 10)
    inputs[1].write_bytes(b"x" * 5000)
    assert suite["floor"].copy(tmp_path / "out", 3000, inputs) == 7560
    assert (tmp_path / "out").read_bytes() == bytes(range(256)) * 10 + b"x" * 440


def test_a_machine_in_words_names_its_cores_and_disk(suite: dict[str, ModuleType], tmp_path: Path) -> None:
    facts = suite["machine"].describe(tmp_path)
    assert facts == json.loads(json.dumps(facts)), "it is written as JSON, and compared when a run goes on"
    text = suite["machine"].in_words(facts)
    assert f"{facts['cores']} cores" in text
    assert facts["disk"] in text


def test_ratios_are_of_medians_and_start_up_is_taken_off(suite: dict[str, ModuleType]) -> None:
    def wall(seconds: float) -> dict[str, float]:
        return {"wall_seconds": seconds}

    result = {
        "medians": {"floor": wall(2), "dopkit": wall(7), "mergekit": wall(21)},
        "start_up_medians": {"dopkit": wall(4), "mergekit": wall(22)},
    }
    assert suite["elementwise"].ratios(result) == {
        "dopkit_to_floor": 3.5,
        "dopkit_beyond_start_up_to_floor": 1.5,
        "mergekit_to_floor": 10.5,
        "mergekit_beyond_start_up_to_floor": 0.0,
        "mergekit_to_dopkit": 3.0,
    }
    assert suite["measure"].median([3, 1, 2]) == 2
    assert suite["measure"].median([4, 1, 2, 3]) == 2.5


def test_the_objective_is_that_of_the_documentation(suite: dict[str, ModuleType]) -> None:
    generator = torch.Generator().manual_seed(0)
    base, merged, incoming, point = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(4))
    expected = 0.0
    for weight, target in ((0.8, merged), (0.2, incoming)):
        tau = target - base
        u, s, vh = torch.linalg.svd(tau, full_matrices=False)
        keep = slice(0, 3)  # the published rule leaves out the triplet that reaches the share
        left = torch.diag(s[keep]) @ u[:, keep].T @ (point - target)
        right = (point - target) @ vh[keep].T @ torch.diag(s[keep])
        expected += weight * float(torch.linalg.matrix_norm(left) ** 2 + torch.linalg.matrix_norm(right) ** 2)
    assert suite["dop"]._objective(base, merged, incoming)(point) == pytest.approx(expected, rel=1e-12)


@pytest.fixture(scope="module")
def measured(suite: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two lines of the quick suite without peers: an elementwise one, and DOP's."""
    folder: Path = tmp_path_factory.mktemp("suite")
    for name in ("llama-tiny", "llama-start-up", "vit-tiny"):
        suite["models"].make(folder / "models", name)  # here, where torch is loaded already
    none = ["--mergekit", "none", "--fusionbench", "none"]
    suite["run"].main(["--quick", "--rounds", "1", "--only", "linear", "dop", "--folder", str(folder), *none])
    return folder


def test_every_line_tells_time_memory_and_bytes(measured: Path) -> None:
    results: dict[str, Any] = json.loads((measured / "results.json").read_text())
    assert list(results["lines"]) == ["linear-tiny", "dop-vit-tiny"]
    linear, dop = results["lines"].values()
    floor = linear["medians"]["floor"]
    size = (measured / "models" / "llama-tiny" / "e0" / "model.safetensors").stat().st_size
    assert size <= floor["asked_written"] < size + 10_000
    assert floor["asked_read"] >= 3 * size
    assert linear["medians"]["dopkit"]["peak_bytes"] > 50e6
    assert linear["ratios"]["dopkit_to_floor"] > 1
    first, later = linear["first_start_up"], linear["start_up_medians"]["dopkit"]
    assert first["cpu_seconds"] > later["cpu_seconds"] + 0.5, "the first one imports transformers"
    assert len(list((measured / "cache" / "skeletons").iterdir())) == 6, "of three models: how they are seen and loaded"
    assert dop["medians"]["exact"]["peak_bytes"] < 350e6, "it has not asked a class"
    assert dop["matrices"] == {"64x32": 1, "32x64": 1, "32x32": 4}
    assert set(dop["medians"]) == {"exact", "adam"}
    assert "mergekit" not in results["versions"]
    table = (measured / "results.md").read_text()
    assert "| dopkit `exact`, whole command |" in table
    assert table.count("| `linear`, 3 experts of") == 2


def test_what_is_measured_is_not_measured_again(
    suite: dict[str, ModuleType], measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (measured / "results.json").read_bytes()
    suite["run"].main(["--quick", "--only", "linear", "dop", "--folder", str(measured)])
    assert "linear-tiny: measured already" in capsys.readouterr().out
    assert (measured / "results.json").read_bytes() == before


def test_results_of_another_machine_are_not_added_to(suite: dict[str, ModuleType], tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"machine": {"cores": 1000}, "lines": {}}))
    with pytest.raises(SystemExit, match="another machine"):
        suite["run"].main(["--quick", "--folder", str(tmp_path)])
