"""Other sources of rows: the Hub, streamed and not; adapters, with tokens and tokenizers of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import adapters
import pytest
import tiny
import torch
import wordy
from hubserver import TestHub, connect

import dopkit
from dopkit.errors import PlanError

MakeRecipe = Callable[..., dopkit.Recipe]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
RECIPE = """
base_model: org/base
merge_method: task_arithmetic
models: [org/e0, org/e1]
tokenizer: {source: union, pad_to_multiple_of: 8, tokens: {cd: {source: org/e1, force: true}}}
"""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TestHub]:
    with TestHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache", token=hub.token("org"))
        yield hub
        assert hub.crashes == []


def publish(hub: TestHub, root: Path, *names: str) -> None:
    for name in names:
        hub.create_repo(f"org/{name}", {})
        hub.add_folder(f"org/{name}", root / name)
    hub.clear_log()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("make", [wordy.make_three, wordy.make_others])
def test_the_bytes_are_those_of_the_folders(
    make: Callable[[Path], Path], stream: bool, hub: TestHub, tmp_path: Path
) -> None:
    publish(hub, make(tmp_path), "base", "e0", "e1")
    result = dopkit.run(dopkit.parse_recipe(RECIPE), tmp_path / "out", dopkit.Options(stream=stream))
    dopkit.run(dopkit.parse_recipe(RECIPE.replace("org/", "./"), folder=tmp_path), tmp_path / "local")
    assert result.plan.streamed == stream
    assert tiny.weights(tmp_path / "out") == tiny.weights(tmp_path / "local")
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).exists() == (tmp_path / "local" / name).exists()
    assert wordy.ids(tmp_path / "out") == wordy.ids(tmp_path / "local")


def test_equal_tokenizers_are_not_fetched(hub: TestHub, tmp_path: Path) -> None:
    """The Hub says what their bytes are. Where small files differ, they are read alone."""
    base = wordy.make(tmp_path / "base", 0)
    for number in (0, 1):
        tiny.make_expert(base, tmp_path / f"e{number}", number)
    (tmp_path / "e1" / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    publish(hub, tmp_path, "base", "e0", "e1")
    recipe = dopkit.parse_recipe("base_model: org/base\nmerge_method: ties\nparameters: {density: 0.5}\n"
                                 "models: [org/e0, org/e1]\n")  # fmt: skip
    dopkit.plan(recipe)
    assert {entry.path for entry in hub.log if "tokenizer.json" in entry.path} == set()
    assert {entry.path.rpartition("/")[2] for entry in hub.log if "tokenizer" in entry.path} == {
        "tokenizer_config.json"
    }


def test_a_tokenizer_is_pinned(hub: TestHub, tmp_path: Path) -> None:
    """Of a model that is not merged only small files are read, and the recipe of the result says at which commit."""
    wordy.make_three(tmp_path)
    publish(hub, tmp_path, "base", "e0")
    wordy.make_tokenizer(tmp_path / "words", [*reversed(wordy.PLAIN)])
    publish(hub, tmp_path, "words")
    text = "base_model: org/base\nmerge_method: task_arithmetic\nmodels: [org/e0]\ntokenizer_source: org/words\n"
    result = dopkit.run(dopkit.parse_recipe(text), tmp_path / "out")
    assert result.plan.recipe.tokenizer is not None
    named = result.plan.recipe.tokenizer.model
    assert named is not None and named.pinned
    assert f"tokenizer: org/words@{named.revision}" in (tmp_path / "out" / "dopkit_recipe.yaml").read_text()
    assert tiny.read(tmp_path / "out")[EMBEDDING][:, 0].tolist() == [*reversed(range(1000, 1009))]


def test_an_adapter_on_a_vocabulary_in_another_order(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """Its embedding is made before its rows are put in order."""
    base = wordy.make(tmp_path / "base", 0)
    merged = adapters.make_adapter(base, tmp_path / "a0", target_modules=["embed_tokens", "q_proj"],
                                   stored_embeddings=False)  # fmt: skip
    wordy.make_tokenizer(tmp_path / "words", [*reversed(wordy.PLAIN)])
    recipe = make_recipe(tmp_path, ["a0"], "linear", parameters={"weight": 1.0}, tokenizer="./words")
    dopkit.run(recipe, tmp_path / "out")
    found = tiny.read(tmp_path / "out")
    assert torch.allclose(found[EMBEDDING], merged[EMBEDDING].flip(0), atol=1e-5)
    assert torch.equal(found[HEAD], merged[HEAD].flip(0))


def test_an_adapter_that_brought_tokens(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """An embedding that PEFT resized and stored whole, and a tokenizer beside it."""
    base = wordy.make(tmp_path / "base", 0)
    longer = tmp_path / "longer"
    wordy.make(longer, 0, added={"<x>": False})
    merged = adapters.make_adapter(longer, tmp_path / "a0", modules_to_save=["embed_tokens", "lm_head"])
    config = tmp_path / "a0" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(base)}))
    wordy.make_tokenizer(tmp_path / "a0", added={"<x>": False})
    with pytest.raises(PlanError, match=r"a0: its token '<x>' \(id 9\) is not in ./"):
        dopkit.plan(make_recipe(tmp_path, ["a0"], "linear", parameters={"weight": 1.0}))
    recipe = make_recipe(tmp_path, ["a0"], "linear", parameters={"weight": 1.0}, tokenizer="union")
    dopkit.run(recipe, tmp_path / "out")
    found = tiny.read(tmp_path / "out")
    assert torch.allclose(found[EMBEDDING], merged[EMBEDDING], atol=1e-4)
    assert torch.allclose(found[HEAD], merged[HEAD], atol=1e-4)
    assert wordy.ids(tmp_path / "out")["<x>"] == 9


def test_offline_a_tokenizer_that_was_never_seen(hub: TestHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can tell what it is; the plan says what was taken for granted."""
    wordy.make_three(tmp_path)
    publish(hub, tmp_path, "base", "e0")
    recipe = dopkit.parse_recipe("base_model: org/base\nmerge_method: task_arithmetic\nmodels: [org/e0]\n"
                                 "tokenizer: base\n")  # fmt: skip
    dopkit.run(recipe, tmp_path / "out")
    for path in (tmp_path / "cache").rglob("tokenizer*.json"):
        if "e0" in str(path):
            path.unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    notes = dopkit.plan(recipe).notes
    assert any("offline, and its tokenizer is not in the cache: taken to have the same tokens" in one for one in notes)
