"""The command line as a user meets it: every verb, its output, its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml
from click.testing import CliRunner, Result

import dopkit
from dopkit.cli import main


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def recipe(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "trio.yaml"
    path.write_text(f"base_model: {llama}/base\nmerge_method: dop\nmodels: [{llama}/e0, {llama}/e1]\n")
    return path


def test_run_names_the_folder_after_the_recipe(recipe: Path) -> None:
    result = invoke("run", "trio.yaml")
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir("trio")) == [
        "README.md", "chat_template.jinja", "config.json", "dopkit_receipt.json", "dopkit_recipe.yaml",
        "dopkit_state.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    lines = result.stdout.splitlines()
    assert lines[0] == "merged 21 tensors (6 mean, 15 dop exact) into trio"
    assert lines[1].startswith("the objective over 15 matrices: ")
    assert lines[-1] == (
        "verified: all 21 tensors are there in the planned shape; every value is finite; "
        "loads as LlamaForCausalLM with no missing or unexpected key"
    )
    assert result.stderr.splitlines() == ["reading headers", "merging", "verifying"]

    again = invoke("run", "trio.yaml")
    assert again.exit_code == 0
    assert again.stdout == "trio already is this merge; nothing to do (--overwrite makes it again)\n"
    other = invoke("run", "trio.yaml", "--max-shard-size", "6KB")
    assert other.exit_code == 1
    assert "trio: holds another merge" in other.stderr


def test_quiet_and_verbose(recipe: Path) -> None:
    quiet = invoke("run", "trio.yaml", "-o", "quiet", "--quiet")
    assert (quiet.exit_code, quiet.output) == (0, "")
    verbose = invoke("run", "trio.yaml", "-o", "verbose", "--verbose")
    assert [line.split()[0] for line in verbose.stderr.splitlines() if "/21 " in line] == [
        f"{n}/21" for n in range(1, 22)
    ]


def test_run_json_is_the_receipt(recipe: Path) -> None:
    result = invoke("run", "trio.yaml", "--json")
    data = json.loads(result.stdout)
    assert data["folder"] == "trio" and data["already_there"] is False
    assert data["receipt"] == json.loads(Path("trio/dopkit_receipt.json").read_text())


def test_plan_lists_everything_and_writes_nothing(recipe: Path, llama: Path) -> None:
    before = sorted(os.listdir())
    result = invoke("plan", "trio.yaml")
    assert result.exit_code == 0 and sorted(os.listdir()) == before
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["linear", "dop", "exact", "14", "9.22", "kB"] in lines
    assert ["head", "dop", "exact", "1", "2.05", "kB"] in lines
    assert result.stdout.splitlines()[-1].startswith("needs 0 B of download, ")

    verbose = invoke("plan", "trio.yaml", "--verbose").stdout
    for name in tiny.read(llama / "base"):
        assert f"\n{name} " in verbose
    data = json.loads(invoke("plan", "trio.yaml", "--json").stdout)
    assert {tensor["name"] for tensor in data["tensors"]} == set(tiny.read(llama / "base"))
    assert data["needs"]["disk"] == sum(file["bytes"] for file in data["files"])


def test_check_reads_the_recipe_alone(recipe: Path) -> None:
    recipe.write_text("base_model: nobody/nothing\nmerge_method: dop\nmodels: [some/one, some/two@main]\n")
    result = invoke("check", "trio.yaml")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "trio.yaml is well-formed: dop over 2 models beside the base"
    data = json.loads(invoke("check", "trio.yaml", "--json").stdout)
    assert data["recipe"]["models"] == ["some/one", "some/two@main"]
    missing = invoke("check", "nowhere.yaml")
    assert missing.exit_code == 1
    assert missing.stderr == "there is no recipe nowhere.yaml\n  `dopkit init` writes one to start from\n"


STAGES = """name: a
merge_method: linear
models: [{0}/e0, {0}/e1]
parameters: {{weight: 1}}
---
merge_method: task_arithmetic
base_model: {0}/base
models: [a, {0}/e2]
parameters: {{weight: 1}}
"""


def test_plan_shows_what_each_of_several_processes_would_do(recipe: Path) -> None:
    lines = invoke("plan", "trio.yaml", "--processes", "3").stdout.splitlines()
    assert lines[-7].endswith("in each process") and lines[-6].startswith("needs ") and not lines[-5]
    assert [line.split()[0] for line in lines[-4:]] == ["process", "0", "1", "2"]
    assert sum(int(line.split()[1]) for line in lines[-3:]) == 21
    shared = json.loads(invoke("plan", "trio.yaml", "--processes", "3", "--json").stdout)["processes"]
    assert [len(own["tensors"]) for own in shared] == [int(line.split()[1]) for line in lines[-3:]]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_a_run_is_shared(recipe: Path, monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    """Under `accelerate launch` one process refuses, and the others are silent."""
    for name, value in (("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    result = invoke("plan", "trio.yaml")
    assert result.exit_code == 1 and not result.stdout
    assert ("only a run is shared" in result.stderr) is (rank == "0")


def test_check_and_plan_tell_the_stages(recipe: Path, llama: Path) -> None:
    recipe.write_text(STAGES.format(llama))
    checked = invoke("check", "trio.yaml").stdout.splitlines()
    assert checked[:2] == [
        "trio.yaml is well-formed: task_arithmetic over 2 models beside the base",
        "stage a: linear over 2 models",
    ]
    data = json.loads(invoke("check", "trio.yaml", "--json").stdout)
    assert [stage["name"] for stage in data["stages"]] == ["a"] and data["recipe"]["models"][0] == "a"
    planned = invoke("plan", "trio.yaml").stdout.splitlines()
    assert planned[:2] == ["stage a:", "linear: weighted mean or sum of the models"]
    assert [line.split()[:2] for line in planned[2:4]] == [["1", f"{llama}/e0"], ["2", f"{llama}/e1"]]
    assert ["1", "a"] in [line.split()[:2] for line in planned[4:]]
    kept = json.loads(invoke("plan", "trio.yaml", "--json", "--keep-stages").stdout)
    assert kept["stages"] == [
        {"name": "a", "method": "linear", "base": None, "models": [f"{llama}/e0", f"{llama}/e1"]}
    ]  # fmt: skip
    result = invoke("run", "trio.yaml", "-o", "out", "--keep-stages")
    assert result.exit_code == 0 and Path("out/stages/a/model.safetensors").is_file()
    steps = invoke("run", "trio.yaml", "-o", "out2", "--save-steps")
    assert steps.exit_code == 0 and Path("out2/steps/01").is_dir()


def test_methods(recipe: Path) -> None:
    known = sorted(dopkit.methods.BUILTIN)
    families = [part.splitlines() for part in invoke("methods").stdout.rstrip().split("\n\n")]
    assert sorted(line.split()[0] for family in families for line in family[1:]) == known
    for heading, *lines in families:
        assert {f"{dopkit.methods.BUILTIN[line.split()[0]].family}:" for line in lines} == {heading}
    assert "weight required   number  (also per model)" in invoke("methods", "linear").stdout
    assert "models: 1 beside the base" in invoke("methods", "slerp").stdout
    dop = invoke("methods", "dop").stdout
    assert "https://openreview.net/forum?id=zD5cUX67b9" in dop
    for name, field in dopkit.methods.BUILTIN["dop"].parameters.model_fields.items():
        assert f"\n{name} = " in dop
        assert field.description
    assert "svd_epsilon = 0.99999   number > 0, <= 1" in dop
    unknown = invoke("methods", "dopp")
    assert (unknown.exit_code, unknown.stderr) == (
        1,
        f"unknown method 'dopp' (did you mean 'dop'? known: {', '.join(known)})\n",
    )
    assert set(json.loads(invoke("methods", "dop", "--json").stdout)["parameters"]) == set(
        dopkit.methods.BUILTIN["dop"].parameters.model_fields
    )


def test_show_reads_back_what_was_merged(recipe: Path, llama: Path) -> None:
    invoke("run", "trio.yaml")
    text = invoke("show", "trio").stdout
    assert text.startswith("# dopkit_recipe.yaml\nmerge_method: dop\n")
    receipt = json.loads(Path("trio/dopkit_receipt.json").read_text())
    assert receipt["shards"][0]["sha256"] in text
    assert all(name in invoke("show", "trio", "--verbose").stdout for name in tiny.read(llama / "base"))
    assert json.loads(invoke("show", "trio", "--json").stdout)["receipt"] == receipt
    nothing = invoke("show", str(llama / "base"))
    assert nothing.exit_code == 1
    assert "is not a merged model" in nothing.stderr


def test_init_writes_a_recipe_that_checks(recipe: Path) -> None:
    assert invoke("init").exit_code == 0
    assert invoke("check", "recipe.yaml").exit_code == 0
    assert invoke("init", "-").stdout == Path("recipe.yaml").read_text()
    again = invoke("init")
    assert again.exit_code == 1 and again.stderr.startswith("recipe.yaml exists already")
    # Every key that is commented out is a key that exists.
    uncommented = "\n".join(
        line.removeprefix("# ")
        if line.startswith("# ") and line[2:].split(":")[0] in ("dtype", "heads", "copy")
        else line
        for line in Path("recipe.yaml").read_text().splitlines()
    )
    assert {"dtype", "heads", "copy"} <= set(yaml.safe_load(uncommented))
    Path("all.yaml").write_text(uncommented)
    assert invoke("check", "all.yaml").exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [["run"], ["run", "r.yaml", "--device", "gpu"], ["run", "r.yaml", "--max-memory", "lots"], ["rnu"], ["--nonsense"]],
)
def test_wrong_usage_is_exit_2(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr


def test_a_merge_whose_small_files_are_gone_or_damaged(recipe: Path) -> None:
    assert invoke("run", "trio.yaml", "-q").exit_code == 0
    Path("trio/dopkit_receipt.json").write_text("[]")
    again = invoke("run", "trio.yaml")
    assert again.exit_code == 1 and again.stderr.startswith("reading headers\nthe output folder is in the way\n")
    assert invoke("run", "trio.yaml", "--overwrite", "-q").exit_code == 0
    Path("trio/dopkit_recipe.yaml").write_bytes(b"name: \xff")
    assert invoke("show", "trio").stderr == "cannot read the recipe trio/dopkit_recipe.yaml: it is not UTF-8 text\n"
    Path("trio/dopkit_recipe.yaml").unlink()
    assert invoke("show", "trio").stderr == "there is no recipe trio/dopkit_recipe.yaml\n"


def test_interrupt_says_how_to_go_on(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dopkit.pipeline.merge", interrupted)
    result = invoke("run", "trio.yaml")
    assert result.exit_code == 1
    assert result.stderr.endswith("interrupted; the same command continues where it stopped\n")
    monkeypatch.setattr("dopkit.pipeline.plan", interrupted)
    assert invoke("plan", "trio.yaml").stderr.endswith("interrupted\n"), "there is nothing to go on with"


def test_a_bug_keeps_its_traceback(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("dopkit.pipeline.merge", broken)
    assert isinstance(invoke("run", "trio.yaml").exception, ZeroDivisionError)


def test_debug_shows_where_an_error_came_from(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOPKIT_DEBUG", "1")
    assert isinstance(invoke("check", "nowhere.yaml").exception, dopkit.DopkitError)


def test_python_m_dopkit_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "dopkit", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"dopkit, version {dopkit.__version__}\n"
