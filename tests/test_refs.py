"""Unit tests for dopkit.refs: one spelling, one meaning, decided without a look at disk or Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from dopkit import refs
from dopkit.refs import ModelRef

ROOT = Path("/data/recipes")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def parse(text: str) -> ModelRef:
    return refs.parse(text, ROOT)


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("user/name", "user/name", None),
        ("gpt2", "gpt2", None),
        ("_user/_name", "_user/_name", None),
        (" user/name-1.5_b ", "user/name-1.5_b", None),
        ("user/name@main", "user/name", "main"),
        ("user/name@refs/pr/1", "user/name", "refs/pr/1"),
        ("user/name@v1.0-rc_2", "user/name", "v1.0-rc_2"),
        ("user/name@" + COMMIT, "user/name", COMMIT),
    ],
)
def test_a_hub_repository(text: str, repo: str, revision: str | None) -> None:
    ref = parse(text)
    assert (ref.repo, ref.revision, ref.folder, ref.adapter) == (repo, revision, None, None)
    assert str(ref) == text.strip()
    assert ref.name == repo


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("./model", "/data/recipes/model"),
        ("./model/", "/data/recipes/model"),
        ("../model", "/data/model"),
        ("./a/../model", "/data/recipes/model"),
        (".", "/data/recipes"),
        ("..", "/data"),
        ("/models/one", "/models/one"),
        ("./a b+c@d", "/data/recipes/a b+c@d"),
    ],
)
def test_a_folder(text: str, folder: str) -> None:
    ref = parse(text)
    assert (ref.repo, ref.revision, ref.folder) == (None, None, Path(folder))
    assert not ref.pinned
    assert ref.name == Path(folder).name


def test_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert parse("~/model").folder == Path("/home/somebody/model")
    with pytest.raises(ValueError, match="^'~no-such-user-here/x': there is no such user's home folder$"):
        parse("~no-such-user-here/x")


def test_a_relative_root_means_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refs.parse("./model", Path("sub")).folder == tmp_path / "sub" / "model"


@pytest.mark.parametrize(
    "text",
    [
        "", "a/b/c", "user/", "/".join("ab") + "/", "user//name", "-user/name", "user/na me", "user/..", "user/a..b",
        "user/a--b", "user/name.git", "user/name-", "user/name.", "üser/name", "user\\name", "C:\\models", "https://x/y",
        "@main",
    ],
)  # fmt: skip
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    what = "is neither a Hub repository (user/name or user/name@revision) nor a folder (./folder)"
    assert str(caught.value) == f"{text!r} {what}"


@pytest.mark.parametrize(
    "revision", ["", "a b", "..", "a/../b", "/etc", "-x", ".x", "x/", "x.", "a//b", "a~1", "a:b", "a*"]
)
def test_what_is_no_revision_is_refused(revision: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(f"user/name@{revision}")
    what = f"{revision!r} is not a revision (a branch, tag or commit)"
    assert str(caught.value) == f"{f'user/name@{revision}'!r}: {what}"


@pytest.mark.parametrize("text", ["./a\0b", "user/\x1b[31mname", "./a\nb", "user/name\u202e"])
def test_characters_that_no_name_has_are_refused(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert str(caught.value) == f"{text!r} holds characters that no model's name has"


def test_an_adapter_is_applied_to_a_hub_repository() -> None:
    ref = parse("user/base@v1+./adapter")
    assert (ref.repo, ref.revision) == ("user/base", "v1")
    assert ref.adapter is not None
    assert ref.adapter.folder == ROOT / "adapter"
    assert str(ref) == "user/base@v1+./adapter"
    assert ref.written_from(Path("/data")) == "user/base@v1+./recipes/adapter"
    pinned = ref.at(COMMIT)
    assert (str(pinned), pinned.short) == (f"user/base@{COMMIT}+./adapter", "user/base@0123456+./adapter")
    assert ref.key == parse("user/base@v1+./x/../adapter").key
    assert [str(part) for part in ref.parts] == ["user/base@v1", "./adapter"]
    assert parse("user/base").with_adapter(parse("./adapter")) == parse("user/base+./adapter")
    assert ref.written_in_parts(Path("/data")) == ("user/base@v1+./recipes/adapter", None)
    with pytest.raises(ValueError, match="'a/b\\+c/d\\+e/f' names an adapter of an adapter"):
        parse("a/b+c/d+e/f")
    with pytest.raises(ValueError, match="names an adapter of an adapter"):
        ref.with_adapter(parse("c/d"))
    with pytest.raises(ValueError, match="^'' is neither"):
        parse("user/base+")


def test_an_adapter_is_applied_to_a_folder_whose_name_may_hold_a_plus() -> None:
    base = parse("./a+b")
    ref = base.with_adapter(parse("user/adapter@v1"))
    assert (base.adapter, ref.folder, ref.local, ref.name) == (None, ROOT / "a+b", True, "a+b+user/adapter")
    assert (str(ref), ref.parts) == ("./a+b+user/adapter@v1", (base, parse("user/adapter@v1")))
    assert ref.written_in_parts(ROOT.parent) == ("./recipes/a+b", "user/adapter@v1")


def test_two_spellings_of_one_model_have_one_key() -> None:
    same = [
        ("./a", "./b/../a"),
        ("./a", "/data/recipes/a/"),
        ("user/name", "user/name@main"),
        ("user/name", " user/name "),
    ]
    different = [("./a", "./b"), ("user/name", "user/name@v1"), ("user/name", "other/name"), ("a", "./a")]
    assert all(parse(one).key == parse(two).key for one, two in same)
    assert all(parse(one).key != parse(two).key for one, two in different)


def test_only_a_full_commit_is_pinned() -> None:
    assert [parse(f"user/name@{revision}").pinned for revision in (COMMIT, COMMIT[:39], COMMIT.upper(), "main")] == [
        True, False, False, False,
    ]  # fmt: skip
    pinned = parse("user/name@main").at(COMMIT)
    assert (str(pinned), pinned.short, pinned.pinned) == (f"user/name@{COMMIT}", "user/name@0123456", True)
    assert parse("user/name@main").short == "user/name@main"
    assert parse("./a").short == "./a"


@pytest.mark.parametrize(
    ("text", "folder", "written"),
    [
        ("user/name@main", "/elsewhere", "user/name@main"),
        ("./model", "/data/recipes", "./model"),
        ("./model", "/data/out", "../recipes/model"),
        ("../model", "/data/recipes/deep/er", "../../../model"),
        (".", "/data/recipes", "."),
        ("..", "/data/recipes", ".."),
        ("./..odd", "/data/recipes", "./..odd"),
        ("/models/one", "/data/recipes", "../../models/one"),
    ],
)
def test_a_reference_written_from_elsewhere_means_the_same(text: str, folder: str, written: str) -> None:
    ref = parse(text)
    assert ref.written_from(Path(folder)) == written
    assert refs.parse(written, Path(folder)).key == ref.key


def test_the_name_of_a_repository_to_write_to() -> None:
    assert refs.parse_repo_id("user/name-1.0") == "user/name-1.0"
    for wrong in ("name", "./name", "user/name@main", "user/name+a/b", "user/a/b", "user/a..b", "", "user/" + 97 * "x"):
        with pytest.raises(ValueError):
            refs.parse_repo_id(wrong)


@pytest.mark.parametrize(
    ("text", "local"),
    [("user/name", False), ("./folder", True), ("user/base+user/lora", False), ("user/base+./lora", True)],
)
def test_what_nobody_else_has_is_local(text: str, local: bool) -> None:
    assert refs.parse(text, Path()).local is local
