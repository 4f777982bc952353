"""Recipes that live on the Hub: which argument means one, what is refused, and sharing one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hubserver import CLIENT_WARNING, TestHub, connect

import dopkit
from dopkit import hub, hub_recipes, receipt
from dopkit.errors import DopkitError, HubError, OutputError, RecipeError

pytestmark = pytest.mark.filterwarnings(CLIENT_WARNING)

RUN = {"device": "cpu", "seconds": 1.0, "peak_resident_bytes": 1}
GOOD = {
    "layout": 1,
    "base": None,
    "models": [],
    "run": RUN,
    "verified": {},
    "versions": {},
    "shards": [],
    "tensors": {},
}
RECIPE = "merge_method: average\nmodels: [org/e0, org/e1@v1]\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TestHub]:
    with TestHub() as server:
        connect(monkeypatch, server, tmp_path / "cache", token=server.token("me"))
        for name in ("e0", "e1"):
            server.create_repo(f"org/{name}", {"config.json": b"{}"})
        server.tag("org/e1", "v1")
        monkeypatch.chdir(tmp_path)
        yield server
        assert server.crashes == []


def carry(server: TestHub, text: str, repo: str = "other/recipe") -> str:
    return server.create_repo(repo, {"dopkit_recipe.yaml": text.encode()})


def refusal(source: str) -> str:
    with pytest.raises(DopkitError) as caught:
        dopkit.load_recipe(source)
    return str(caught.value)


# A file or a repository


@pytest.mark.parametrize(
    "text",
    [
        "recipe.yaml",
        "a/b.yaml",
        "a/b.yml",
        "./a/b",
        "../a/b",
        "/a/b",
        "~/a/b",
        "gpt2",
        "a/b/c",
        "a/b+c/d",
        "",
        "a\0b/c",
    ],
)
def test_what_is_a_file(text: str) -> None:
    assert hub_recipes.repository(text) is None


@pytest.mark.parametrize("text", ["user/name", "user/name@v1", "user/name@refs/pr/1", "User-1/na.me_2"])
def test_what_is_a_repository(text: str) -> None:
    ref = hub_recipes.repository(text)
    assert ref is not None and ref.text == text
    assert hub_recipes.repository(Path(text)) is None


def test_what_exists_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    Path("recipes/mine").write_text(RECIPE)
    assert hub_recipes.repository("recipes/mine") is None
    assert dopkit.load_recipe("recipes/mine").name == "mine"


def test_reading_a_file_asks_nobody(server: TestHub, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    assert dopkit.load_recipe("r.yaml").merge_method == "average"
    assert server.log == []
    assert refusal("nothing").startswith("there is no recipe nothing")


# Recipes of others


def test_a_recipe_is_read_at_the_commit_that_is_asked_for(server: TestHub) -> None:
    first = carry(server, RECIPE)
    server.upload("other/recipe", {"dopkit_recipe.yaml": RECIPE.replace("average", "dop").encode()})
    assert dopkit.load_recipe(f"other/recipe@{first}").merge_method == "average"
    assert "'base_model' is missing" in refusal("other/recipe")
    recipe = dopkit.load_recipe(f"other/recipe@{first}")
    assert (recipe.name, [str(ref) for ref in recipe.refs]) == ("recipe", ["org/e0", "org/e1@v1"])


@pytest.mark.parametrize("folder", ["./e9", "../e9", "/etc", "~/models", ".", "org/base+./adapter"])
def test_a_recipe_of_another_may_not_name_folders(server: TestHub, folder: str) -> None:
    commit = carry(server, f"merge_method: average\nmodels: [org/e0, {folder}]\n")
    assert refusal("other/recipe").splitlines() == [
        f"the recipe of other/recipe@{commit[:7]} names 1 folder of its author's machine",
        f"  {folder}",
    ]


def test_a_recipe_of_another_may_not_name_a_tokenizer_in_a_folder(server: TestHub) -> None:
    carry(server, RECIPE + "tokenizer: /etc\n")
    assert refusal("other/recipe").splitlines()[1:] == ["  /etc"]


def test_nothing_in_a_recipe_is_expanded(server: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    carry(server, "merge_method: average\nmodels: [org/e0, $SECRET/model]\ncopy: ['${SECRET}.*', '$HOME']\n")
    text = refusal("other/recipe")
    assert "$SECRET/model" in text and "hidden" not in text
    carry(server, RECIPE + "copy: ['${SECRET}.*', '$HOME']\n", "other/second")
    assert dopkit.load_recipe("other/second").copied == ("${SECRET}.*", "$HOME")


def test_alias_bombs_code_and_huge_files_are_refused(server: TestHub) -> None:
    levels = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 9)]
    carry(server, "a0: &a0 [x]\n" + "\n".join(levels) + "\n", "other/bomb")
    assert "too large or too deeply nested" in refusal("other/bomb")
    carry(server, "merge_method: !!python/object/apply:os.system ['true']\n", "other/code")
    assert "the YAML tag !!python/object/apply:os.system has no place here" in refusal("other/code")
    carry(server, "# " + "x" * hub_recipes.MOST_RECIPE_BYTES, "other/huge")
    server.clear_log()
    assert refusal("other/huge").endswith("dopkit_recipe.yaml is too large to be one")
    assert not server.requests("GET /resolve/")
    server.create_repo("other/binary", {"dopkit_recipe.yaml": b"\xff\xfe"})
    assert refusal("other/binary").endswith("is not UTF-8 text")


def test_where_its_author_publishes_is_not_where_we_do(server: TestHub) -> None:
    carry(server, RECIPE + "repo_id: other/result\n")
    assert dopkit.load_recipe("other/recipe").repo_id is None


def test_what_cannot_be_fetched_is_said(server: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = server.create_repo("other/model", {"config.json": b"{}"})
    assert refusal("other/model").splitlines() == [
        f"other/model@{commit[:7]} carries no dopkit recipe",
        "  it holds no dopkit_recipe.yaml",
        "    `dopkit recipes search` lists what does.",
    ]
    assert refusal("other/nothing").startswith("other/nothing does not exist on the Hub, or is private")
    assert refusal("other/model@v7").startswith("other/model@v7 has no such revision")
    server.create_repo("other/gated", {"dopkit_recipe.yaml": RECIPE.encode()}, gated=True)
    assert " is gated\n" in refusal("other/gated")
    server.create_repo("other/secret", {"dopkit_recipe.yaml": RECIPE.encode()}, private=True)
    assert refusal("other/secret").startswith("other/secret does not exist on the Hub, or is private")


def test_offline_a_recipe_comes_out_of_the_cache(server: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    carry(server, RECIPE)
    online = dopkit.load_recipe("other/recipe")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    server.clear_log()
    assert dopkit.load_recipe("other/recipe") == online
    assert "is not in the cache" in refusal("other/never-seen")
    assert server.log == []


def test_a_receipt_that_holds_what_is_read() -> None:
    assert receipt.parse(json.dumps(GOOD), "it") == GOOD


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[" * 100_000, "is damaged"),
        ('{"layout": 99}', "another version of dopkit"),
        ('{"layout": 1, "base": null}', "is damaged: models is missing"),
        ('{"layout": 1, "base": 3}', "is damaged: base is missing or not what it should be"),
        (json.dumps(GOOD | {"run": RUN | {"seconds": 1e999}}), "run.seconds is"),
        (json.dumps(GOOD | {"run": RUN | {"seconds": "1"}}), "run.seconds is"),
        (json.dumps(GOOD | {"shards": [{"file": "x", "bytes": 10**30, "sha256": ""}]}), "shards.0.bytes is"),
    ],
)
def test_a_receipt_of_another_is_not_trusted(server: TestHub, text: str, message: str) -> None:
    server.create_repo("other/merged", {"dopkit_recipe.yaml": RECIPE.encode(), receipt.RECEIPT: text.encode()})
    ref = hub_recipes.named("other/merged")
    assert ref is not None
    with pytest.raises(OutputError, match=message):
        hub_recipes.read(ref)


# Sharing


def test_what_is_shared_is_pinned_and_reads_back(server: TestHub) -> None:
    recipe = dopkit.parse_recipe(RECIPE)
    shared = hub_recipes.share(recipe, "me/mix")
    assert shared.url == f"{server.endpoint}/me/mix" and shared.changed
    files = server.files("me/mix")
    assert files.keys() == {".gitattributes", "README.md", "dopkit_recipe.yaml"}
    commits = [server.commit("org/e0").sha, server.commit("org/e1", "v1").sha]
    back = dopkit.load_recipe("me/mix")
    assert [ref.revision for ref in back.refs] == commits
    assert back.parameters == recipe.parameters and back.merge_method == "average"
    card = files["README.md"].decode()
    assert card.startswith("---\ntags:\n- dopkit\n- dopkit-recipe\ndopkit:\n  base_model: org/e0\n")
    assert "\nbase_model:" not in card  # it holds no weights, so it is no descendant of anything
    assert all(commit in card for commit in commits)
    assert server.commit("me/mix").title == "Share a dopkit recipe"


def test_sharing_twice_changes_nothing_and_sharing_anew_is_one_commit(server: TestHub) -> None:
    first = hub_recipes.share(dopkit.parse_recipe(RECIPE), "me/mix")
    server.clear_log()
    again = hub_recipes.share(dopkit.parse_recipe(RECIPE), "me/mix")
    assert again == hub.Shared(first.url, first.commit, changed=False)
    assert not server.requests("POST /commit/")
    changed = hub_recipes.share(dopkit.parse_recipe(RECIPE + "dtype: float16\n"), "me/mix", message="Half")
    assert changed.changed and len(server.requests("POST /commit/")) == 1
    assert server.commit("me/mix").sha == changed.commit


def test_a_private_share(server: TestHub) -> None:
    hub_recipes.share(dopkit.parse_recipe(RECIPE), "me/secret", private=True)
    assert server.site.store.repo("models", "me/secret").private  # type: ignore[union-attr]
    hub_recipes.share(dopkit.parse_recipe(RECIPE), "me/open")
    with pytest.raises(HubError, match="me/open exists already and is public"):
        hub_recipes.share(dopkit.parse_recipe(RECIPE), "me/open", private=True)


@pytest.mark.parametrize(
    "files", [{"model.safetensors": b"x"}, {"README.md": b"# mine"}, {"dopkit_recipe.yaml": RECIPE.encode()}]
)
def test_a_repository_that_was_not_shared_is_left_alone(server: TestHub, files: dict[str, bytes]) -> None:
    commit = server.create_repo("me/model", files)
    with pytest.raises(HubError, match="me/model is in the way"):
        hub_recipes.share(dopkit.parse_recipe(RECIPE), "me/model")
    assert server.commit("me/model").sha == commit


def test_local_folders_are_not_shared(server: TestHub) -> None:
    with pytest.raises(RecipeError, match=r"names 1 folder of this machine\n  ./e1\n  Publish these models first"):
        hub_recipes.share(dopkit.parse_recipe(RECIPE.replace("org/e1@v1", "./e1")), "me/mix")
    assert server.log == []


def test_a_lost_answer_is_no_second_commit(server: TestHub) -> None:
    recipe = dopkit.parse_recipe(RECIPE)
    server.lose_answer("POST /commit/")
    with pytest.raises(HubError, match=r"cannot write to me/mix(.|\n)*Running the same command again continues"):
        hub_recipes.share(recipe, "me/mix")
    commit = server.commit("me/mix").sha
    assert hub_recipes.share(recipe, "me/mix") == hub.Shared(f"{server.endpoint}/me/mix", commit, changed=False)


def test_why_it_cannot_be_shared_is_said(server: TestHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = dopkit.parse_recipe(RECIPE)
    with pytest.raises(HubError, match="'me' is not a name for a repository"):
        hub_recipes.share(recipe, "me")
    with pytest.raises(HubError, match="cannot write to other/mix\n  the Hub does not allow it"):
        hub_recipes.share(recipe, "other/mix")
    server.conflict()
    with pytest.raises(HubError, match="somebody else has written there meanwhile"):
        hub_recipes.share(recipe, "me/mix")
    hub_recipes.share(recipe, "me/mix")  # an empty repository that a broken run left is ours
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="cannot write to me/mix\n  HF_HUB_OFFLINE is set"):
        hub_recipes.share(recipe, "me/mix")
    connect(monkeypatch, server, tmp_path / "cache2")
    with pytest.raises(HubError, match="cannot write to me/new\n  the Hub does not know who you are"):
        hub_recipes.share(recipe, "me/new")


# Searching


@pytest.fixture
def many(server: TestHub) -> TestHub:
    for day, (name, likes, downloads) in enumerate((("old", 9, 1), ("math-merge", 3, 30), ("new", 5, 20)), 1):
        card = "---\ntags: [merge, dopkit]\nbase_model: [org/base, org/e0]\ndopkit: {merge_method: dop}\n---\n"
        server.create_repo(f"a/{name}", {"README.md": card.encode()})
        server.set(f"a/{name}", likes=likes, downloads=downloads, modified=datetime(2026, 1, day, tzinfo=UTC))
    server.create_repo("a/unrelated", {"README.md": b"---\ntags: [merge]\n---\n"})
    return server


def test_search_orders_and_filters(many: TestHub) -> None:
    def names(**how: object) -> list[str]:
        return [found.repo for found in hub.search("dopkit", **how)]  # type: ignore[arg-type]

    assert names() == ["a/new", "a/math-merge", "a/old"]
    assert names(order="likes") == ["a/old", "a/new", "a/math-merge"]
    assert names(order="downloads") == ["a/math-merge", "a/new", "a/old"]
    assert names(words="math") == ["a/math-merge"]
    assert names(limit=2) == ["a/new", "a/math-merge"]
    found = hub.search("dopkit", limit=1)[0]
    assert (found.likes, found.downloads, found.updated) == (5, 20, datetime(2026, 1, 3, tzinfo=UTC))
    assert hub_recipes.describe(found.card) == ("org/base", "dop")


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ({}, ("", "")),
        ({"base_model": "a/b"}, ("a/b", "")),
        ({"base_model": [{"x": 1}], "dopkit": ["dop"]}, ("", "")),
        ({"base_model": [], "dopkit": {"merge_method": 3}}, ("", "")),
    ],
)
def test_a_card_may_say_anything(card: dict[str, object], expected: tuple[str, str]) -> None:
    assert hub_recipes.describe(card) == expected


def test_search_needs_the_hub(server: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="cannot search the Hub\n  HF_HUB_OFFLINE is set"):
        hub.search("dopkit")
