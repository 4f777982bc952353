"""Tokens and ids out of every kind of tokenizer file, and what is known to be equal without a look inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import wordy

from dopkit.checkpoints import files
from dopkit.errors import CheckpointError
from dopkit.refs import ModelRef
from dopkit.vocabulary.comparing import difference
from dopkit.vocabulary.reading import Reader, TokenizerFiles, Vocabulary, files_of


def look(folder: Path) -> TokenizerFiles:
    return files_of(ModelRef(f"./{folder.name}", folder=folder))


def read(folder: Path) -> Vocabulary:
    found = Reader().read(look(folder))
    assert found is not None
    return found


def write(folder: Path, **contents: Any) -> Path:
    folder.mkdir()
    for name, content in contents.items():
        name = name.replace("_json", ".json").replace("_txt", ".txt").replace("_model", ".model")
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_tokenizer_json(tmp_path: Path) -> None:
    wordy.make_tokenizer(tmp_path, added={"<x>": False, "<y>": True})
    found = read(tmp_path)
    assert found.ids == wordy.ids(tmp_path) and found.length == 11
    assert found.added.keys() == {"<unk>", "<s>", "</s>", "<x>", "<y>"}
    assert (found.added["<y>"]["special"], found.added["<x>"]["special"]) == (True, False)


def test_unigram(tmp_path: Path) -> None:
    data = {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.5]]}, "added_tokens": []}
    assert read(write(tmp_path / "m", tokenizer_json=data)).ids == {"<unk>": 0, "a": 1}


def test_plain_vocabularies(tmp_path: Path) -> None:
    bert = write(tmp_path / "bert", vocab_txt="[PAD]\n[UNK]\na\n", added_tokens_json={"<x>": 3})
    assert read(bert).ids == {"[PAD]": 0, "[UNK]": 1, "a": 2, "<x>": 3}
    decoder = {"2": {"content": "<x>", "special": True, "lstrip": True}}
    gpt = write(tmp_path / "gpt", vocab_json={"a": 1, "b": 0}, tokenizer_config_json={"added_tokens_decoder": decoder})
    assert read(gpt).ids == {"a": 1, "b": 0, "<x>": 2}
    assert read(gpt).added["<x>"] == {
        "id": 2, "content": "<x>", "single_word": False, "lstrip": True, "rstrip": False, "normalized": False,
        "special": True,
    }  # fmt: skip


def test_tokenizer_json_goes_before_the_others(tmp_path: Path) -> None:
    wordy.make_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text('{"other": 0}')
    assert look(tmp_path).main == "tokenizer.json"
    assert "other" not in read(tmp_path).ids


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "qwen.tiktoken", "tekken.json"])
def test_what_is_not_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\0")
    assert look(tmp_path).main == name
    assert Reader().read(look(tmp_path)) is None


def test_a_lone_sentencepiece_file_beside_its_equal(tmp_path: Path) -> None:
    """The tokens that were added there are not those of this one."""
    full = tmp_path / "full"
    wordy.make_tokenizer(full, added={"<x>": False})
    (full / "tokenizer.model").write_bytes(b"pieces")
    lone = write(tmp_path / "lone", tokenizer_model="pieces", added_tokens_json={"<y>": 9})
    reader = Reader()
    first, second = reader.read(look(full)), reader.read(look(lone))
    assert first is not None and second is not None
    assert second.ids == {**{token: first.ids[token] for token in wordy.PLAIN}, "<y>": 9}
    assert difference(first, second) == "its token '<y>' (id 9) is not in ./full, and 1 more of its tokens differ"
    assert difference(second, first) == "its token '<x>' (id 9) is not in ./lone, and 1 more of its tokens differ"


def test_damaged_ones(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"\./m: tokenizer.json is not valid JSON"):
        Reader().read(look(write(tmp_path / "m", tokenizer_json="{")))
    with pytest.raises(CheckpointError, match=r"\./n: tokenizer_config.json is not valid JSON"):
        Reader().read(look(write(tmp_path / "n", vocab_json={}, tokenizer_config_json="[")))
    with pytest.raises(CheckpointError, match="./none holds no tokenizer"):
        look(tmp_path / "none")
    for number, data in enumerate(({}, [], {"model": {}}, {"model": {"vocab": {"a": "b"}}}, {"model": {"vocab": [1]}})):
        assert Reader().read(look(write(tmp_path / str(number), tokenizer_json=data))) is None


def test_what_is_equal_by_its_bytes_is_read_once(tmp_path: Path) -> None:
    fetched = []

    def tracked(folder: Path) -> TokenizerFiles:
        def path(name: str) -> Path:
            fetched.append((folder.name, name))
            return folder / name

        names = frozenset(one.name for one in folder.iterdir())
        return TokenizerFiles(folder.name, names, path, lambda name: files.digests(folder / name))

    for name in ("one", "two"):
        wordy.make_tokenizer(tmp_path / name)
    one, two = tracked(tmp_path / "one"), tracked(tmp_path / "two")
    assert one.equal(two) and fetched == []
    (tmp_path / "two" / "tokenizer_config.json").write_text("{}")
    small = [("one", "tokenizer_config.json"), ("two", "tokenizer_config.json")]
    assert one.equal(two) and fetched == small  # another chat template, say
    decoder = {"added_tokens_decoder": {"9": {"content": "<x>"}}}
    (tmp_path / "two" / "tokenizer_config.json").write_text(json.dumps(decoder))
    assert not one.equal(two)
    fetched.clear()
    reader = Reader()
    assert reader.read(one) is not None and reader.read(two) is not None
    assert fetched == [("one", "tokenizer.json"), *small]


def test_the_hashes_are_those_of_git_and_of_lfs(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"hello\n")
    assert files.digests(tmp_path / "file") == {
        "ce013625030ba8dba906f756967f9e9ca394464a",  # git hash-object
        "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",  # sha256sum
    }


def test_differences(tmp_path: Path) -> None:
    def of(*tokens: str) -> Vocabulary:
        shown = TokenizerFiles("./m", frozenset(), tmp_path.joinpath, lambda name: frozenset())
        return Vocabulary(shown, {token: number for number, token in enumerate(tokens)})

    base = of("a", "b", "c")
    assert difference(base, of("a", "b", "c")) is None
    assert difference(base, of("a", "b")) == "lacks the token 'c' (id 2) of ./m"
    assert difference(base, of("a", "b", "c", "d")) == "its token 'd' (id 3) is not in ./m"
    assert difference(base, of("b", "a", "d")) == (
        "its token 'b' has the id 0, in ./m 1, and 3 more of its tokens differ"  # a, d, c
    )
