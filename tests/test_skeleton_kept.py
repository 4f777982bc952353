"""Kept answers of the model classes: the same as those asked anew, and never those to another question."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dopkit import skeleton
from dopkit.skeleton import asking, kept, loading

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
SHAPES = {
    "model.embed_tokens.weight": (64, 16),
    "model.layers.0.self_attn.q_proj.weight": (16, 16),
    "model.layers.1.mlp.down_proj.weight": (16, 32),
    "model.norm.weight": (16,),
    "stranger.weight": (3, 3),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(kept.FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache" / "skeletons"


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it, and nobody may ask a class any more."""

    def forbid() -> None:
        def refuse(*args: object) -> None:
            raise AssertionError("a class was asked")

        for module, name in ((asking, "build"), (asking, "build_tower"), (asking, "backbone_class")):
            monkeypatch.setattr(module, name, refuse)
        monkeypatch.setattr(loading, "check_loads", refuse)

    return forbid


def answers() -> list[object]:
    return [
        skeleton.build(CONFIG, SHAPES),
        skeleton.build(CONFIG, SHAPES, headless=True),
        skeleton.build_tower(CONFIG, CONFIG, SHAPES),
        skeleton.check_loads(CONFIG, SHAPES),
        skeleton.backbone_class(CONFIG),
    ]


def test_a_kept_answer_is_the_answer(folder: Path, forbidden: Any) -> None:
    fresh = answers()
    assert len(list(folder.iterdir())) == len(fresh)
    forbidden()
    assert answers() == fresh
    assert fresh[3].problems, "or the comparison shows nothing"  # type: ignore[attr-defined]


def test_where_a_config_comes_from_makes_no_difference(folder: Path, forbidden: Any) -> None:
    found = skeleton.build({**CONFIG, "_name_or_path": "a", "transformers_version": "4.1"}, SHAPES)
    forbidden()
    assert skeleton.build({**CONFIG, "_name_or_path": "b"}, SHAPES) == found


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        ({**CONFIG, "tie_word_embeddings": False}, SHAPES),
        (CONFIG, {**SHAPES, "stranger.weight": (3, 4)}),
        (CONFIG, dict(reversed(SHAPES.items()))),
    ],
)
def test_another_question_is_asked(
    config: dict[str, Any], shapes: dict[str, tuple[int, ...]], folder: Path, forbidden: Any
) -> None:
    skeleton.build(CONFIG, SHAPES)
    forbidden()
    with pytest.raises(AssertionError, match="was asked"):
        skeleton.build(config, shapes)


def test_other_versions_are_asked(folder: Path, forbidden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    skeleton.build(CONFIG, SHAPES)
    forbidden()
    monkeypatch.setattr(kept, "_versions", lambda: ["6.0"])
    with pytest.raises(AssertionError, match="was asked"):
        skeleton.build(CONFIG, SHAPES)


def test_versions_in_development_are_not_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept.metadata, "version", lambda library: "5.3.0.dev0")
    kept._versions.cache_clear()
    try:
        skeleton.build(CONFIG, SHAPES)
    finally:
        kept._versions.cache_clear()
    assert not folder.exists()


def test_what_could_not_be_answered_is_not_kept(folder: Path) -> None:
    strange = {"model_type": "of-tomorrow"}
    assert skeleton.build(strange, SHAPES).fallback
    assert skeleton.check_loads(strange, SHAPES).unchecked
    assert skeleton.backbone_class(strange) is None
    assert not folder.exists()


@pytest.mark.parametrize("content", ["", "{", '{"roles": {}}', "[]"])
def test_a_damaged_answer_is_asked_again_and_mended(content: str, folder: Path) -> None:
    fresh = skeleton.build(CONFIG, SHAPES)
    (answer,) = folder.iterdir()
    good = answer.read_text()
    answer.write_text(content)
    assert skeleton.build(CONFIG, SHAPES) == fresh
    assert json.loads(answer.read_text()) == json.loads(good)


def test_a_folder_that_cannot_be_made_is_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(kept.FOLDER, str(tmp_path / "file"))
    assert skeleton.build(CONFIG, SHAPES).class_name == "LlamaForCausalLM"


def test_a_folder_that_may_only_be_read_will_do(folder: Path, forbidden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = skeleton.build(CONFIG, SHAPES)

    def refuse(path: Path) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(os, "utime", refuse)
    forbidden()
    assert skeleton.build(CONFIG, SHAPES) == found


def test_nothing_is_kept_where_nothing_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kept.FOLDER, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    skeleton.build(CONFIG, SHAPES)
    assert not list(tmp_path.iterdir())


def test_the_usual_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kept.FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    skeleton.build(CONFIG, SHAPES)
    assert len(list((tmp_path / "dopkit" / "skeletons").iterdir())) == 1


def test_without_a_home_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kept.FOLDER)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    skeleton.build(CONFIG, SHAPES)
    assert not list(tmp_path.iterdir())


def test_those_not_wanted_for_longest_go(folder: Path, monkeypatch: pytest.MonkeyPatch, forbidden: Any) -> None:
    monkeypatch.setattr(kept, "_MOST", 2)
    few = [{"model.norm.weight": (16,), name: (3,)} for name in "abc"]
    for age, shapes in zip((30, 20), few, strict=False):
        skeleton.build(CONFIG, shapes)
        newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime)
        past = newest.stat().st_mtime - age
        os.utime(newest, (past, past))
    skeleton.build(CONFIG, few[0])  # wanted again
    skeleton.build(CONFIG, few[2])
    assert len(list(folder.iterdir())) == 2
    forbidden()
    skeleton.build(CONFIG, few[0])
    with pytest.raises(AssertionError, match="was asked"):
        skeleton.build(CONFIG, few[1])


def test_a_second_plan_does_without_transformers(folder: Path, llama: Path) -> None:
    code = (
        "import sys, dopkit; from dopkit.cli import main\n"
        "main(['plan', sys.argv[1]], standalone_mode=False); print('transformers' in sys.modules)"
    )
    recipe = llama / "remembered.yaml"
    recipe.write_text("merge_method: linear\nmodels: [./e0, ./e1]\nparameters: {weight: 0.5}\n")
    first, second = (
        subprocess.run([sys.executable, "-c", code, str(recipe)], check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    )
    assert first.endswith("True\n") and second.endswith("False\n")
    memory = re.compile("^memory: .*\n|(True|False)\n", re.MULTILINE)
    assert memory.sub("", first) == memory.sub("", second)


def test_a_disk_that_is_full_is_not_littered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    assert skeleton.build(CONFIG, SHAPES).fallback is None
    assert not list(folder.iterdir())
