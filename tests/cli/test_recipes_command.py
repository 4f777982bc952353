"""``dopkit recipes`` as a user meets it: search, get, share; and the second name of the command, for ``hf dopkit``."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hubserver import CLIENT_WARNING, TestHub, connect

import dopkit
from dopkit.cli import main

pytestmark = pytest.mark.filterwarnings(CLIENT_WARNING)

RECIPE = "# my mix\nmerge_method: average\nmodels: [org/e0, org/e1]\n"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TestHub]:
    with TestHub() as server:
        connect(monkeypatch, server, tmp_path / "cache", token=server.token("me"))
        for name in ("e0", "e1"):
            server.create_repo(f"org/{name}", {"config.json": b"{}"})
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        Path("mix.yaml").write_text(RECIPE)
        yield server
        assert server.crashes == []


def test_share_search_get_round_trip(server: TestHub) -> None:
    shared = invoke("recipes", "share", "mix.yaml", "me/mix")
    assert (shared.exit_code, shared.stdout) == (0, f"shared as {server.endpoint}/me/mix\n")
    assert (
        invoke("recipes", "share", "mix.yaml", "me/mix").stdout == f"nothing has changed at {server.endpoint}/me/mix\n"
    )

    server.set("me/mix", likes=3, modified=datetime(2026, 2, 1, tzinfo=UTC))
    lines = invoke("recipes", "search").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["repository", "holds", "likes", "downloads", "updated", "base", "model", "method"],
        ["me/mix", "recipe", "3", "0", "2026-02-01", "org/e0", "average"],
    ]
    (data,) = json.loads(invoke("recipes", "search", "mix", "--json").stdout)
    assert data["repository"] == "me/mix" and data["merge_method"] == "average" and data["base_model"] == "org/e0"
    assert {"dopkit", "dopkit-recipe"} <= set(data["tags"])

    Path("mix.yaml").unlink()
    got = invoke("recipes", "get", "me/mix")
    commit = server.commit("me/mix").sha
    assert (
        got.stdout
        == f"wrote mix.yaml, the recipe of me/mix@{commit[:7]}; `dopkit plan mix.yaml` shows what it would do\n"
    )
    assert [str(ref) for ref in dopkit.load_recipe("mix.yaml").refs] == [
        f"org/e{n}@{server.commit(f'org/e{n}').sha}" for n in range(2)
    ]
    shown = invoke("show", "me/mix").stdout
    assert shown.startswith("# dopkit_recipe.yaml\nmerge_method: average\n")
    assert shown.endswith("a recipe without weights: nothing was merged here yet\n")
    assert json.loads(invoke("show", "me/mix", "--json").stdout)["receipt"] is None


def test_search_options(server: TestHub) -> None:
    for name, likes in (("a", 1), ("b", 7), ("c", 4)):
        server.create_repo(f"x/{name}", {"README.md": b"---\ntags: [dopkit]\n---\n"})
        server.set(f"x/{name}", likes=likes, downloads=10 - likes)

    def names(*arguments: str) -> list[str]:
        return [line.split()[0] for line in invoke("recipes", "search", *arguments).stdout.splitlines()[1:]]

    assert names("--sort", "likes") == ["x/b", "x/c", "x/a"]
    assert names("--sort", "downloads", "--limit", "2") == ["x/a", "x/c"]
    assert (
        invoke("recipes", "search", "zzz").stdout == "nothing on the Hub is tagged `dopkit` and has zzz in its name\n"
    )
    assert json.loads(invoke("recipes", "search", "zzz", "--json").stdout) == []
    assert invoke("recipes", "search", "--limit", "0").exit_code == 2


def test_a_card_cannot_steer_the_terminal(server: TestHub) -> None:
    card = '---\ntags: [dopkit]\ndopkit: {merge_method: "\\e[2J", base_model: "a\\nb"}\n---\n'
    server.create_repo("x/evil", {"README.md": card.encode()})
    lines = invoke("recipes", "search").stdout.splitlines()
    assert len(lines) == 2 and lines[1].split()[0] == "x/evil" and len(lines[1].split()) == 5


def test_get_keeps_what_is_there_and_prints(server: TestHub) -> None:
    server.create_repo("other/mix", {"dopkit_recipe.yaml": RECIPE.encode()})
    refused = invoke("recipes", "get", "other/mix")
    assert refused.exit_code == 1 and refused.stderr == "mix.yaml exists already\n  Name another file with -o.\n"
    assert invoke("recipes", "get", "other/mix", "-o", "-").stdout == RECIPE
    assert invoke("recipes", "get", "other/mix", "-o", "new.yaml").exit_code == 0
    assert Path("new.yaml").read_text() == RECIPE
    assert invoke("recipes", "get", "other/mix", "-o", "no/such/folder.yaml").stderr.startswith("cannot write ")


def test_get_hands_out_nothing_that_names_folders(server: TestHub) -> None:
    server.create_repo("other/local", {"dopkit_recipe.yaml": b"merge_method: average\nmodels: [/home/x/model]\n"})
    refused = invoke("recipes", "get", "other/local")
    assert refused.exit_code == 1
    assert "names 1 folder of its author's machine\n  /home/x/model\n" in refused.stderr
    assert not Path("local.yaml").exists()


def test_share_checks_first(server: TestHub) -> None:
    Path("bad.yaml").write_text("merge_method: averag\nmodels: [org/e0]\n")
    assert "unknown method 'averag'" in invoke("recipes", "share", "bad.yaml", "me/mix").stderr
    Path("gone.yaml").write_text("merge_method: average\nmodels: [org/e0, org/gone]\n")
    assert "org/gone does not exist on the Hub" in invoke("recipes", "share", "gone.yaml", "me/mix").stderr
    assert "there is no recipe nothing.yaml" in invoke("recipes", "share", "nothing.yaml", "me/mix").stderr
    assert server.site.store.repo("models", "me/mix") is None
    done = invoke("recipes", "share", "mix.yaml", "me/mix", "--private", "--message", "For us")
    assert done.exit_code == 0, done.output
    assert server.commit("me/mix").title == "For us"


@pytest.mark.parametrize("name", ["mix", "./a/b", "a/b/c", "a/b@"])
def test_a_name_that_is_none(server: TestHub, name: str) -> None:
    assert invoke("recipes", "get", name).exit_code == 2
    assert invoke("recipes", "share", "mix.yaml", name).exit_code == 1


def test_the_command_has_a_second_name() -> None:
    project = tomllib.loads((Path(dopkit.__file__).parent.parent / "pyproject.toml").read_text())
    scripts = project["project"]["scripts"]
    assert scripts["hf-dopkit"] == scripts["dopkit"]
