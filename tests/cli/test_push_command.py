"""``dopkit push`` and ``dopkit run --push-to-hub`` as a user meets them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hubserver import CLIENT_WARNING, TestHub, connect

from dopkit.cli import main

pytestmark = pytest.mark.filterwarnings(CLIENT_WARNING)

RECIPE = "base_model: org/base\nmerge_method: average\nmodels: [org/e0, org/e1]\n"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llama: Path) -> Iterator[TestHub]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pair.yaml").write_text(RECIPE)
    with TestHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache", token=hub.token("ann"))
        for name in ("base", "e0", "e1"):
            hub.add_folder(f"org/{name}", llama / name)
        yield hub
        assert hub.crashes == []


def test_run_and_push(hub: TestHub) -> None:
    result = invoke("run", "pair.yaml", "--push-to-hub", "--repo-id", "ann/pair", "--private")
    assert result.exit_code == 0, result.output
    commit = hub.commit("ann/pair").sha
    assert result.stdout.splitlines()[-1] == (
        f"pushed to {hub.endpoint}/ann/pair, commit {commit[:12]}; names, sizes and hashes there are verified"
    )
    lines = result.stderr.splitlines()
    assert any(line.startswith("uploading model.safetensors, ") and line.endswith("(1 of 1)") for line in lines)
    assert hub.site.store.repo("models", "ann/pair").private  # type: ignore[union-attr]
    again = invoke("push", "pair", "ann/pair")
    assert again.stdout == f"{hub.endpoint}/ann/pair already holds this merge; nothing was sent\n"


def test_the_repository_may_stand_in_the_recipe(hub: TestHub, tmp_path: Path) -> None:
    (tmp_path / "pair.yaml").write_text(RECIPE + "repo_id: ann/named\n")
    data = json.loads(invoke("run", "pair.yaml", "--push-to-hub", "--json").stdout)
    assert data["pushed"]["repo_id"] == "ann/named"
    assert data["pushed"]["commit"] == hub.commit("ann/named").sha
    (tmp_path / "pair.yaml").write_text(RECIPE + "repo_id: ./here\n")
    wrong = invoke("check", "pair.yaml")
    assert wrong.exit_code == 1
    assert "line 4: './here' is not the name of a repository to write to (user/name)" in wrong.stderr


def test_push_of_a_folder(hub: TestHub) -> None:
    assert invoke("run", "pair.yaml", "-q").exit_code == 0
    quiet = invoke("push", "pair", "ann/pair", "--quiet", "--message", "First")
    assert (quiet.exit_code, quiet.output) == (0, "")
    assert hub.commit("ann/pair").title == "First"
    proposed = invoke("push", "pair", "ann/pair", "--create-pr")
    assert "already holds this merge" in proposed.stdout
    branch = json.loads(invoke("push", "pair", "ann/pair", "--revision", "v2", "--json").stdout)
    assert branch["url"].endswith("/tree/v2")
    hub.create_repo("ann/other", {"config.json": b"{}"})
    refused = invoke("push", "pair", "ann/other")
    assert refused.exit_code == 1
    assert refused.stderr.splitlines()[-2:] == [
        "ann/other holds files that dopkit did not make",
        "  Choose another name, or replace what is there with --overwrite.",
    ]
    assert invoke("push", "pair", "ann/other", "--overwrite").exit_code == 0


def test_nothing_is_merged_that_cannot_be_pushed(hub: TestHub, tmp_path: Path) -> None:
    for arguments in ([], ["--repo-id", "bob/pair"], ["--repo-id", "pair"]):
        result = invoke("run", "pair.yaml", "--push-to-hub", *arguments)
        assert result.exit_code == 1
        assert "cannot merge: 1 problem" in result.stderr
        assert sorted(path.name for path in tmp_path.iterdir() if "pair" in path.name) == ["pair.yaml"]
    assert not hub.requests("POST ")


@pytest.mark.parametrize("option", [["--repo-id", "a/b"], ["--private"], ["--message", "x"], ["--create-pr"]])
def test_an_option_without_effect_is_wrong_usage(hub: TestHub, option: list[str]) -> None:
    result = invoke("run", "pair.yaml", *option)
    assert result.exit_code == 2
    assert f"{option[0]} needs --push-to-hub" in result.stderr


def test_a_pull_request_has_no_branch_of_its_own(hub: TestHub) -> None:
    result = invoke("push", "pair", "ann/pair", "--create-pr", "--revision", "dev")
    assert result.exit_code == 2
