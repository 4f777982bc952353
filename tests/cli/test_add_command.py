"""``dopkit add`` as a user meets it: what it prints, what it refuses, what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import tiny
import yaml
from click.testing import CliRunner, Result

import dopkit
from dopkit.cli import main


def invoke(*arguments: str) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def said(result: Result) -> str:
    """What went to stderr, its lines joined."""
    return " ".join(result.stderr.split())


@pytest.fixture
def folder(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``duo`` in the current folder: two models merged by sums, which were not kept. The models lie beside it."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "e0", "e1", "e2", "e3"):
        os.symlink(llama / name, tmp_path / name)
    text = "base_model: ./base\nmerge_method: dop\nmodels: [./e0, ./e1]\n"
    (tmp_path / "duo.yaml").write_text(text)
    (tmp_path / "all.yaml").write_text(text + "parameters: {history: all}\n")
    dopkit.run(dopkit.load_recipe("duo.yaml"), "duo")
    return tmp_path


def test_a_model_is_added(folder: Path) -> None:
    before = sorted(os.listdir())
    result = invoke("add", "duo", "./e2")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "merged 21 tensors (6 mean, 15 dop exact) into duo"
    assert lines[1].startswith("the objective over 15 matrices: ")
    assert lines[-1] == f"duo holds 3 models: {folder}/e0, {folder}/e1, ./e2"
    assert result.stderr.splitlines() == ["reading headers", "merging", "verifying"]
    assert sorted(os.listdir()) == before
    recipe = yaml.safe_load(Path("duo/dopkit_recipe.yaml").read_text())
    assert recipe["models"] == ["../e0", "../e1", "../e2"]


def test_interrupted_behind_the_addition(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command would refuse to add the model again: it is said what does go on."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dopkit.pipeline.assess", interrupted)
    monkeypatch.setattr("dopkit.adding.check_tasks", lambda tasks: None)
    result = invoke("add", "duo", "./e2", "--tasks", "tasks.yaml", "-q")
    assert result.exit_code == 1
    assert said(result).startswith("interrupted; duo holds the added models all the same. Go on from it with")
    assert "the same command continues" not in said(result)


def test_what_is_lost_is_told_and_does_not_stop_it(folder: Path) -> None:
    invoke("run", "all.yaml", "-q")
    result = invoke("add", "all", "./e2")
    assert result.exit_code == 0
    lost = "all: the sums over the earlier models were not kept, so `history: last`"
    assert said(result).startswith(f"{lost} (--from-experts reads the earlier models again)")
    invoke("run", "all.yaml", "-q", "--overwrite", "--keep-state")
    assert "is read, but not kept on for the next model (--keep-state does)" in said(invoke("add", "all", "./e2"))


def test_several_in_order_elsewhere(folder: Path) -> None:
    before = tiny.weights(Path("duo"))
    result = invoke("add", "duo", "./e3", "./e2", "-o", "four")
    assert result.stdout.splitlines()[-1].endswith("/e1, ./e3, ./e2")
    assert tiny.weights(Path("duo")) == before
    again = invoke("add", "duo", "./e3", "./e2", "-o", "four")
    assert again.exit_code == 0
    assert again.stdout.startswith("four already is this merge; nothing to do")
    other = invoke("add", "duo", "./e2", "-o", "four")
    assert other.exit_code == 1 and "four: holds another merge" in other.stderr
    assert "--overwrite" in other.stderr


def test_json(folder: Path) -> None:
    result = invoke("add", "duo", "./e2", "--json")
    assert result.stderr == ""
    data = json.loads(result.stdout)
    assert (data["folder"], data["already_there"]) == ("duo", False)
    assert data["receipt"] == json.loads(Path("duo/dopkit_receipt.json").read_text())
    refused = invoke("add", "duo", "./e2", "--json")
    assert refused.exit_code == 1
    problem = {"place": "./e2", "what": "is in duo already: its model 3", "remedy": ""}
    assert json.loads(refused.stdout) == {"error": "cannot add to duo: 1 problem", "problems": [problem]}


def test_quiet_and_verbose(folder: Path) -> None:
    assert invoke("add", "duo", "./e2", "-o", "quiet", "-q").output == ""
    verbose = invoke("add", "duo", "./e2", "-o", "verbose", "-v")
    assert sum("/21 " in line for line in verbose.stderr.splitlines()) == 21


def test_parameters_of_the_new_model(folder: Path) -> None:
    assert invoke("add", "duo", "./e2", "--set", "alpha=0.3").exit_code == 0
    recipe = yaml.safe_load(Path("duo/dopkit_recipe.yaml").read_text())
    assert recipe["models"][2] == {"model": "../e2", "parameters": {"alpha": 0.3}}
    assert invoke("add", "duo", "./e3", "--set", "alpha=by-count").exit_code == 0


@pytest.mark.parametrize(
    ("setting", "code", "message"),
    [
        ("alpha", 2, "'alpha' is not of the form KEY=VALUE"),
        ("=1", 2, "'=1' is not of the form KEY=VALUE"),
        ("alpha=[", 2, "'[' is no YAML value"),
        ("alpha=2", 1, "alpha: 2 is not between 0 and 1"),
        ("lr=1", 1, "lr: is no parameter of a single model with dop (those: alpha)"),
    ],
)
def test_parameters_that_are_none(folder: Path, setting: str, code: int, message: str) -> None:
    result = invoke("add", "duo", "./e2", "--set", setting)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in said(result)


def test_a_plan_shows_it_and_writes_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    result = invoke("add", "duo", "./e2", "./e3", "--plan")
    assert result.exit_code == 0 and result.stderr == ""
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["1-2", "duo", "13.5", "kB"] in lines and ["3", "./e2", "13.5", "kB"] in lines
    assert ["4", "./e3", "13.5", "kB"] in lines
    assert "goes on from duo after 2 models (e0, e1): from its weights\n" in result.stdout
    assert "not what merging" not in result.stdout
    assert result.stdout.splitlines()[-1].startswith("needs 0 B of download, 15.6 kB of disk in 1 file")
    assert "model.norm.weight" in invoke("add", "duo", "./e2", "--plan", "-v").stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_plan_tells_about_the_state(folder: Path) -> None:
    invoke("run", "all.yaml", "-q")
    lost = invoke("add", "all", "./e2", "--plan").stdout
    assert "goes on from all after 2 models (e0, e1): from its weights\n" in lost
    assert (
        "not what merging all 3 at once gives: the sums over the earlier models were not kept, so `history: last`"
        in lost
    )
    data = json.loads(invoke("add", "all", "./e2", "--plan", "--json").stdout)["continues"]
    assert (data["after"], data["reads_state"]) == (2, False) and "not kept" in data["inexact"]
    assert data["models"] == [f"{folder}/e0", f"{folder}/e1"]
    invoke("run", "all.yaml", "-q", "--overwrite", "--keep-state")
    kept = invoke("add", "all", "./e2", "--plan", "--keep-state").stdout
    assert "goes on from all after 2 models (e0, e1): the kept state of its folds is read\n" in kept
    assert " for the state\n" in kept and "not what merging" not in kept
    again = invoke("add", "all", "./e2", "--plan", "--from-experts").stdout
    assert "goes on from" not in again and [line.split()[:2] for line in again.splitlines()[1:5]] == [
        ["base", f"{folder}/base"],
        ["1", f"{folder}/e0"],
        ["2", f"{folder}/e1"],
        ["3", "./e2"],
    ]
    assert json.loads(invoke("plan", "all.yaml", "-o", "other", "--json").stdout)["continues"] is None


def test_a_plan_refuses_what_add_refuses(folder: Path, vit: Path) -> None:
    for arguments in (("duo", "./e1"), ("duo", str(vit / "e0")), ("base", "./e2"), ("duo", "./e2", "-o", "e3")):
        planned, made = (invoke("add", *arguments, *more) for more in (("--plan",), ()))
        assert planned.exit_code == made.exit_code == 1
        assert planned.stderr.replace("reading headers\n", "") == made.stderr.replace("reading headers\n", "")
    shutil.copytree("base", "stranger")
    for file in Path("stranger").glob("*.safetensors"):
        file.unlink()
    Path("stranger/model.safetensors.index.json").unlink(missing_ok=True)
    assert "holds no model weights" in invoke("add", "duo", "./stranger", "--plan").stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("duo",), 2, "Missing argument 'MODEL...'"),
        ((), 2, "Missing argument 'MERGED'"),
        (("nowhere", "./e2"), 1, "there is no folder nowhere nor is that the name of a Hub repository"),
        (("base", "./e2"), 1, "base is not a merge that can grow it holds no dopkit_receipt.json"),
        (("duo.yaml", "./e2"), 1, "there is no folder duo.yaml"),
        (("duo", "./nowhere"), 1, "./nowhere: there is no such folder"),
        (("duo", "./e1"), 1, "./e1: is in duo already: its model 2"),
        (("duo", "./e2", "./e2"), 1, "./e2: is in duo already: its model 3"),
        (("duo", "./duo"), 1, "./duo: is the merged model itself"),
        (("duo", "duo/x/y"), 1, "'duo/x/y' is neither a Hub repository"),
        (("duo", "e 2"), 1, "'e 2' is neither a Hub repository"),
        (("duo", "e2"), 1, "e2: is the name of a folder here, and read as that of a Hub repository Write ./e2 for"),
        (("duo", "./e2", "--repo-id", "a/b"), 2, "--repo-id needs --push-to-hub"),
        (("duo", "./e2", "-o", "base"), 1, "is in the way: it holds files that dopkit did not make"),
        (("duo", "./e2", "-o", "duo.yaml"), 1, "duo.yaml: is in the way: it is a file"),
        (("duo", "./e2", "--push-to-hub"), 1, "there is no repository to push to"),
        (("duo", "./e2", "--tasks", "none.yaml"), 1, "none.yaml"),
        (("duo", "./e2", "--max-memory", "1MB"), 1, "too little memory"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(
    folder: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    before, weights = sorted(os.listdir()), tiny.weights(Path("duo"))
    result = invoke("add", *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in said(result), result.stderr
    assert sorted(os.listdir()) == before and tiny.weights(Path("duo")) == weights


def test_a_folder_whose_name_is_no_repository_either(folder: Path) -> None:
    Path("a/b").mkdir(parents=True)
    os.symlink(folder / "e2", "a/b/c")
    result = invoke("add", "duo", "a/b/c")
    assert result.exit_code == 1
    assert "'a/b/c' is neither a Hub repository" in result.stderr and "Write ./a/b/c for the folder." in result.stderr


def test_all_problems_at_once(folder: Path) -> None:
    result = invoke("add", "duo", "./e0", "./e1", "x y", "--set", "lr=1")
    assert result.stderr.splitlines()[0] == "cannot add to duo: 4 problems"
    assert len([line for line in result.stderr.splitlines() if line.startswith("  ") and line[2] != " "]) == 4


def test_steps_are_kept_on_request(folder: Path) -> None:
    assert invoke("add", "duo", "./e2", "--save-steps", "-q").exit_code == 0
    assert sorted(os.listdir("duo/steps")) == ["02"]
    assert invoke("add", "duo", "./e3", "-q").exit_code == 0
    assert sorted(os.listdir("duo/steps")) == ["02", "03"]
