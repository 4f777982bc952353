"""``dopkit eval`` as a user meets it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import scored
from click.testing import CliRunner, Result

from dopkit.cli import main


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["eval", *arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scored.make_merge(tmp_path_factory.mktemp("eval"))


@pytest.fixture
def root(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "root")
    monkeypatch.chdir(tmp_path / "root")
    return tmp_path / "root"


def test_the_matrix_and_the_two_numbers(root: Path) -> None:
    result = invoke("merged", "--tasks", "tasks.yaml", "--device", "cpu")
    assert result.exit_code == 0, result.output
    found = json.loads(Path("merged/dopkit_evaluation.json").read_text())
    (first,), (before, after) = ([f"{100 * s['value']:.1f}" for s in row["scores"].values()] for row in found["rows"])
    lines = result.stdout.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["model", "three", "five"],
        ["step", "1", "three", first, "-"],
        ["step", "2", "five", before, after],
    ]
    assert lines[4] == f"{found['acc']:.1%} ACC: the mean accuracy of the final model over all classification tasks."
    assert lines[6].startswith(f"{found['bwt']:+.1%} BWT (backward transfer): ")
    assert result.stderr.splitlines() == ["reading data", "scoring", "step 1: three", "step 2: three", "step 2: five"]

    again = invoke("merged", "--tasks", "tasks.yaml", "--device", "cpu")
    assert again.stdout == result.stdout
    assert again.stderr.splitlines() == ["reading data", "scoring"]


def test_sources_and_limit(root: Path) -> None:
    result = invoke("merged", "--tasks", "tasks.yaml", "--sources", "--limit", "4", "-q")
    assert (result.exit_code, result.output) == (0, "")
    found = json.loads(Path("merged/dopkit_evaluation.json").read_text())
    assert [row["label"] for row in found["rows"]] == ["base", "step 1", "step 2", "expert three", "expert five"]
    assert [task["samples"] for task in found["tasks"]] == [4, 4]


def test_one_model(root: Path) -> None:
    text = scored.TASKS.partition("  - {name: five")[0]
    Path("one.yaml").write_text(text)
    result = invoke("three", "--tasks", "one.yaml")
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()[:2]] == ["three", "three"]


def test_json_is_the_evaluation(root: Path) -> None:
    result = invoke("merged", "--tasks", "tasks.yaml", "--json")
    assert json.loads(result.stdout) == json.loads(Path("merged/dopkit_evaluation.json").read_text())
    assert result.stderr == ""


def test_mistakes_are_told_without_a_traceback(root: Path) -> None:
    Path("bad.yaml").write_text("tasks:\n- {name: a, kind: b, data: c}\n- {nam: a}\n")
    result = invoke("merged", "--tasks", "bad.yaml")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "bad.yaml has 4 problems",
        "  line 2: kind: 'b' should be 'image-classification', 'text-classification' or 'perplexity'",
        "  line 3: unknown key 'nam' (did you mean 'name'?)",
        "  line 3: 'kind' is missing",
        "  line 3: 'data' is missing",
    ]
    assert invoke("nowhere/at/all", "--tasks", "tasks.yaml").exit_code == 1
    assert invoke("merged", "--tasks", "gone.yaml").stderr.splitlines()[0] == "there is no task file gone.yaml"
    assert invoke("merged").exit_code == 2
    Path("data.npz").unlink()
    result = invoke("merged", "--tasks", "tasks.yaml", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"] == "cannot evaluate: 2 problems"
