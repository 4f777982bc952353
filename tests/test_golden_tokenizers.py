"""dopkit against mergekit 0.1.5 where the models have other tokens: the row that every token gets, model by model.

golden/tokenizers holds mergekit's results; make.py there says how they were made. What differs on purpose has a test of
its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import wordy
import yaml

import dopkit

GOLDEN = Path(__file__).parent / "golden" / "tokenizers"
CASES = yaml.safe_load((GOLDEN / "cases.yaml").read_text())

Rows = dict[str, list[float]]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wordy.make_three(tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wordy.make_others(tmp_path_factory.mktemp("others"))


def merged(root: Path, models: list[str], out: Path, alone: str, base: bool = True, **keys: Any) -> Path:
    """What is written with all weight on one model."""
    data = {
        "merge_method": "linear",
        "models": [{"model": f"./{name}", "parameters": {"weight": float(name == alone)}} for name in models],
        **({"base_model": "./base"} if base else {}),
        **keys,
    }
    return dopkit.run(dopkit.parse_recipe(yaml.safe_dump(data), folder=root), out).folder


def rows(folder: Path) -> Rows:
    """Token, or the number of a row without one, to its first numbers in the embedding and in the head."""
    tensors, tokens = tiny.read(folder), {number: token for token, number in wordy.ids(folder).items()}
    names = ("model.embed_tokens.weight", "lm_head.weight")
    return {
        tokens.get(row, str(row)): [float(tensors[name][row, 0]) for name in names]
        for row in range(len(tensors[names[0]]))
    }


@pytest.mark.parametrize("name", CASES)
def test_the_same_rows(name: str, three: Path, others: Path, tmp_path: Path) -> None:
    """By token: which id a new one gets hangs on the order of a hash table in mergekit; here on the models' order."""
    case = CASES[name]
    root = others if case.get("others") else three
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    for model in case["models"]:
        folder = merged(root, case["models"], tmp_path / model, model, not case.get("no_base"), **case["recipe"])
        found = rows(folder)
        assert found.keys() == golden[model].keys()
        assert {token: pytest.approx(own, rel=1e-6) for token, own in golden[model].items()} == found


def test_the_ids_follow_the_models(others: Path, tmp_path: Path) -> None:
    """Ordinary tokens of one model after the other, each in the order of its ids; then those that were added."""
    folder = merged(others, ["base", "e0", "e1"], tmp_path / "out", "base", tokenizer="union")
    assert sorted(wordy.ids(folder), key=wordy.ids(folder).__getitem__) == [
        *wordy.PLAIN, "zz", "bb", "da", "ba", "<q>", "<p>",
    ]  # fmt: skip


def test_the_embedding_does_not_shrink(others: Path, tmp_path: Path) -> None:
    """mergekit cuts the rows beyond the tokens off, which other tools stumble over; here the base's stay."""
    folder = merged(others, ["base", "same"], tmp_path / "out", "same", tokenizer="base")
    assert len(tiny.read(folder)["lm_head.weight"]) == wordy.config(folder)["vocab_size"] == 16


def test_a_new_token_is_cut_out_as_in_its_own_model(three: Path, tmp_path: Path) -> None:
    """mergekit makes `abcd` an added token, which is then cut out of every word; here it comes with its merges."""
    from tokenizers import Tokenizer

    folder = merged(three, ["base", "e0", "e1"], tmp_path / "out", "base", tokenizer="union")
    united, own = (Tokenizer.from_file(str(one / "tokenizer.json")) for one in (folder, three / "e1"))
    for text in ("abcd", "dabcd", "abcdab cd", "ab<x>abcd", "ddabcdd <|im_end|>"):
        assert united.encode(text).tokens == own.encode(text).tokens
    assert united.encode("dabcd").tokens == ["d", "abcd"]


def test_a_token_can_be_added_to_the_base(three: Path, tmp_path: Path) -> None:
    """mergekit fails with a KeyError."""
    tokens = {"<|im_start|>": {"source": "./e0"}}
    folder = merged(three, ["base", "e0"], tmp_path / "out", "base", tokenizer={"source": "base", "tokens": tokens})
    assert rows(folder)["<|im_start|>"] == [1009, -1009]
    assert wordy.ids(folder)["<|im_start|>"] == 9


def test_generation_config_is_kept(three: Path, tmp_path: Path) -> None:
    """mergekit leaves it out when a tokenizer is asked for."""
    folder = merged(three, ["base", "e0"], tmp_path / "out", "base", tokenizer="union")
    assert (folder / "generation_config.json").read_bytes() == (three / "base" / "generation_config.json").read_bytes()
