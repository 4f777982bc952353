"""Unions of the other kinds of tokenizers, and those that there are none of. BPE: tests/test_golden_tokenizers.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dopkit.refs import ModelRef
from dopkit.vocabulary.reading import Reader, Vocabulary, files_of
from dopkit.vocabulary.side_files import of_united
from dopkit.vocabulary.uniting import United, unite


def vocabulary(folder: Path, model: dict[str, Any], added: dict[str, int] | None = None) -> Vocabulary:
    """A tokenizer that was written by hand, as the library saves it."""
    entries = [
        {"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for token, number in (added or {}).items()
    ]  # fmt: skip
    folder.mkdir()
    none = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    data = {"version": "1.0", **none, "added_tokens": entries, "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    found = Reader().read(files_of(ModelRef(f"./{folder.name}", folder=folder)))
    assert found is not None
    return found


def unite_all(*all_of_them: Vocabulary, wanted: Sequence[str] = ()) -> United:
    return unite(all_of_them[0], all_of_them, wanted, all_of_them)


def library(united: United) -> Tokenizer:
    assert united.problems == [] and united.text is not None
    return Tokenizer.from_str(united.text.decode())


def words(*tokens: str) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def test_word_pieces(tmp_path: Path) -> None:
    kind = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}
    base = vocabulary(tmp_path / "base", {**kind, "vocab": words("[UNK]", "un", "##do")}, {"[SEP]": 3})
    other = vocabulary(tmp_path / "other", {**kind, "vocab": words("un", "[UNK]", "##able", "##do")}, {"<x>": 4})
    united = unite_all(base, other)
    assert united.ids == {"[UNK]": 0, "un": 1, "##do": 2, "[SEP]": 3, "##able": 4, "<x>": 5}
    found = library(united)
    assert found.get_vocab(with_added_tokens=True) == united.ids
    assert found.encode("undoable <x> un[SEP]").tokens == ["un", "##do", "##able", "<x>", "un", "[SEP]"]


def test_pieces_with_scores(tmp_path: Path) -> None:
    base = vocabulary(
        tmp_path / "base",
        {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["b", -2.0]]},
        {"</s>": 3},
    )
    other = vocabulary(
        tmp_path / "other", {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["ab", -1.5]]}
    )
    united = unite_all(base, other)
    assert united.ids == {"<unk>": 0, "a": 1, "b": 2, "</s>": 3, "ab": 4}
    found = library(united)
    assert found.get_vocab(with_added_tokens=True) == united.ids
    assert found.encode("ab ba</s>").tokens == ["ab", "b", "a", "</s>"]
    assert united.text is not None
    assert dict(json.loads(united.text)["model"]["vocab"])["ab"] == -1.5


def test_merges_in_the_spelling_of_the_base(tmp_path: Path) -> None:
    kind = {"type": "BPE", "unk_token": None, "fuse_unk": False, "byte_fallback": False}
    base = vocabulary(tmp_path / "base", {**kind, "vocab": words("a", "b", "ab"), "merges": ["a b"]})
    more = {**kind, "vocab": words("a", "b", "ab", "ba", "aba"), "merges": [["b", "a"], ["a", "b"], ["a", "ba"]]}
    united = unite_all(base, vocabulary(tmp_path / "other", more))
    assert united.text is not None
    assert json.loads(united.text)["model"]["merges"] == ["a b", "b a", "a ba"]  # those that make a new token
    assert library(united).encode("ba").tokens == ["ba"]


def test_added_tokens_alone_leave_the_model_as_it_is(tmp_path: Path) -> None:
    kind = {"type": "WordLevel", "unk_token": "a"}
    base = vocabulary(tmp_path / "base", {**kind, "vocab": words("a", "b")}, {"<x>": 2})
    other = vocabulary(tmp_path / "other", {**kind, "vocab": words("b", "a")}, {"<y>": 2})
    united = unite_all(base, other, wanted=["<x>", "<z>"])
    assert united.text is not None and united.new == 2
    assert json.loads(united.text)["model"]["vocab"] == words("a", "b")
    assert library(united).get_vocab(with_added_tokens=True) == {"a": 0, "b": 1, "<x>": 2, "<y>": 3, "<z>": 4}
    assert united.added["<y>"]["special"] and not united.added["<z>"]["special"]


def test_nothing_new_nothing_written(tmp_path: Path) -> None:
    base = vocabulary(tmp_path / "base", {"type": "WordLevel", "unk_token": "a", "vocab": words("a", "b")})
    united = unite_all(base, base)
    assert (united.text, united.new, united.ids) == (None, 0, base.ids)
    assert of_united(united) == {}


def test_no_union(tmp_path: Path) -> None:
    level = vocabulary(tmp_path / "level", {"type": "WordLevel", "unk_token": "a", "vocab": words("a", "b")})
    gram = vocabulary(
        tmp_path / "gram", {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["c", 0.0]]}, {"<x>": 5}
    )
    (what,) = unite_all(level, gram).problems
    assert str(what).startswith("./gram: is a Unigram tokenizer and ./level a WordLevel: there is no union of the two")
    more = vocabulary(tmp_path / "more", {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["b", 0.0]]})
    (what,) = unite_all(gram, more).problems
    assert str(what).startswith("./gram: its ids have gaps")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "vocab.json").write_text('{"a": 0, "d": 1}')
    old = Reader().read(files_of(ModelRef("./plain", folder=plain)))
    assert old is not None
    assert "./plain: its token 'd' cannot be taken over: it has no tokenizer.json" in str(
        unite_all(level, old).problems[0]
    )
    assert "./plain: its tokenizer cannot take in 'b': it has no tokenizer.json" in str(
        unite_all(old, level).problems[0]
    )


def test_a_tokenizer_whose_ids_would_move_is_refused(tmp_path: Path) -> None:
    """The library gives an added token the next id, whatever its file says."""
    kind = {"type": "WordLevel", "unk_token": "a", "vocab": words("a", "b")}
    base = vocabulary(tmp_path / "base", kind, {"<x>": 7})
    (what,) = unite_all(base, wanted=["<y>"]).problems
    assert "would get another id" in str(what) and "'<x>'" in str(what)


def test_the_other_files_are_kept_in_step(tmp_path: Path) -> None:
    kind = {"type": "WordLevel", "unk_token": "a"}
    base = vocabulary(tmp_path / "base", {**kind, "vocab": words("a", "b")}, {"<x>": 2})
    for name, content in {
        "vocab.json": words("a", "b"),
        "added_tokens.json": {"<x>": 2},
        "tokenizer_config.json": {"added_tokens_decoder": {"2": {"content": "<x>"}}, "bos_token": "a"},
    }.items():
        (tmp_path / "base" / name).write_text(json.dumps(content))
    base = Reader().read(files_of(ModelRef("./base", folder=tmp_path / "base"))) or base
    other = vocabulary(tmp_path / "other", {**kind, "vocab": words("a", "c")}, {"<y>": 2})
    changed = of_united(unite_all(base, other))
    assert changed.keys() == {"tokenizer.json", "vocab.json", "added_tokens.json", "tokenizer_config.json"}
    assert changed["vocab.json"] is None  # without the new words
    added, config = changed["added_tokens.json"], changed["tokenizer_config.json"]
    assert isinstance(added, bytes) and isinstance(config, bytes)
    assert json.loads(added) == {"<x>": 2, "<y>": 4}
    assert json.loads(config)["bos_token"] == "a"
    assert json.loads(config)["added_tokens_decoder"].keys() == {"2", "4"}
    assert of_united(unite_all(base, wanted=["<z>"])).keys() == changed.keys() - {"vocab.json"}
