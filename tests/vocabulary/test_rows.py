"""Which row goes where, in numbers; and the tensors that are put together so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dopkit.checkpoints import Checkpoint
from dopkit.checkpoints.folder import open_folder
from dopkit.refs import ModelRef
from dopkit.vocabulary.checkpoint import VocabularyCheckpoint
from dopkit.vocabulary.config import with_rows, with_special_tokens
from dopkit.vocabulary.rows import Member, Piece, Setting, Target, pieces, unchanged


def words(text: str) -> dict[str, int]:
    return {token: number for number, token in enumerate(text)}


def test_the_own_row_then_the_bases_then_the_mean() -> None:
    members = [Member(words("ab"), 2), Member(words("ba"), 2), Member(words("acd"), 3), Member(words("abd"), 3)]
    target = Target(words("abcd"), 4)
    assert pieces(target, members, 1, 0, 0, {}) == (
        Piece(0, 1, ((1, 1),), True), Piece(1, 2, ((1, 0),), True), Piece(2, 3, ((2, 1),), True),
        Piece(3, 4, ((2, 2), (3, 2)), True),
    )  # fmt: skip
    assert pieces(target, members, 2, 0, 0, {})[1] == Piece(1, 2, ((0, 1),), True)  # b: of the base
    assert pieces(target, members, 2, None, 0, {})[1] == Piece(1, 2, ((0, 1), (1, 0), (3, 1)), True)


def test_rows_that_go_on_are_one_piece() -> None:
    members = [Member(words("abcdef"), 8), Member({**words("abc"), "d": 4, "e": 5}, 6)]
    assert pieces(Target(words("abcdef"), 8), members, 1, 0, 0, {}) == (
        Piece(0, 3, ((1, 0),), True), Piece(3, 5, ((1, 4),), True), Piece(5, 6, ((0, 5),), True),
        Piece(6, 8, ((0, 6),), False),
    )  # fmt: skip


def test_padding_is_the_own_then_that_of_the_first_then_the_mean() -> None:
    members = [Member(words("ab"), 4), Member(words("ab"), 3), Member(words("abcd"), 4)]
    target = Target(words("ab"), 6)
    assert pieces(target, members, 1, 0, 0, {})[1:] == (
        Piece(2, 3, ((1, 2),), False), Piece(3, 4, ((0, 3),), False), Piece(4, 6, (), False, True),
    )  # fmt: skip
    assert pieces(target, members, 2, 0, 0, {})[1:] == (  # what is a token there is no padding here
        Piece(2, 4, ((0, 2),), False), Piece(4, 6, (), False, True),
    )  # fmt: skip


def test_settings() -> None:
    members = [Member(words("ab"), 2), Member(words("abc"), 3)]
    target = Target(words("abcd"), 4)
    settings = {
        "a": Setting((1, 1), False),
        "b": Setting((1, 2), True),
        "c": Setting((0, 0), False),
        "d": Setting(None, True),
    }
    assert pieces(target, members, 0, 0, 0, settings) == (
        Piece(0, 1, ((0, 0),), True), Piece(1, 2, ((1, 2),), True), Piece(2, 3, ((0, 0),), True), Piece(3, 4, (), True),
    )  # fmt: skip
    assert pieces(target, members, 1, 0, 0, settings)[2] == Piece(2, 3, ((1, 2),), True)


def test_a_token_that_nobody_has_a_row_for_takes_the_mean() -> None:
    members = [Member(words("abc"), 2)]  # c is a token of the tokenizer alone
    assert pieces(Target(words("abc"), 3), members, 0, 0, 0, {})[1] == Piece(2, 3, (), True, True)


def test_unchanged() -> None:
    member = Member(words("abc"), 4)
    assert unchanged(0, 4, pieces(Target(words("abc"), 4), [member], 0, 0, 0, {}))
    assert not unchanged(0, 4, pieces(Target(words("abc"), 3), [member], 0, 0, 0, {}))
    assert not unchanged(0, 4, pieces(Target(words("acb"), 4), [member], 0, 0, 0, {}))


def model(folder: Path, rows: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Checkpoint:
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator).to(dtype)
               for name, shape in (("emb", (rows, 3)), ("bias", (rows,)), ("other", (5, 2)))}  # fmt: skip
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return open_folder(ModelRef(str(folder), folder=folder), folder)


def wrap(own: int, members: Sequence[Checkpoint], found: Sequence[Piece]) -> VocabularyCheckpoint:
    names = {name: [name] * len(members) for name in ("emb", "bias")}
    return VocabularyCheckpoint(members[own], members, found, names, {})


@pytest.fixture
def found() -> tuple[Piece, ...]:
    return (
        Piece(0, 2, ((0, 3),), True), Piece(2, 4, ((1, 0),), True), Piece(4, 5, ((0, 0), (1, 5)), True),
        Piece(5, 6, (), True), Piece(6, 8, (), False, True), Piece(8, 9, ((0, 1),), False),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("block", [1 << 20, 3])  # one row at a time
def test_rows_are_put_together(
    dtype: torch.dtype, block: int, found: tuple[Piece, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dopkit.vocabulary.checkpoint._BLOCK", block)
    one, two = model(tmp_path / "one", 5, dtype), model(tmp_path / "two", 6, dtype, 1)
    wrapped = wrap(0, [one, two], found)
    for name in ("emb", "bias"):
        a, b = one.read(name), two.read(name)
        precise = torch.float64 if dtype is torch.float64 else torch.float32
        average = ((a[0].to(precise) + b[5].to(precise)) / 2)[None].to(dtype)
        tokens = torch.cat([a[3:5], b[0:2], average, torch.zeros_like(a[:1])])
        mean = torch.cat([a[3:5], b[0:2], torch.zeros_like(a[:1])]).double().sum(0) + average[0].double()
        whole = torch.cat([tokens, torch.stack([mean / 6] * 2).to(dtype), a[1:2]])
        got = wrapped.read(name)
        assert got.dtype == dtype and wrapped.specs[name].shape == whole.shape
        assert torch.equal(got[:6], whole[:6]) and torch.equal(got[8:], whole[8:])
        assert torch.allclose(got, whole, atol=1e-3 if dtype is torch.bfloat16 else 1e-6)
        for start in range(9):
            for stop in range(start, 10):
                assert torch.equal(wrapped.read(name, (start, stop)), got[start:stop])
    assert torch.equal(wrapped.read("other"), one.read("other"))
    with pytest.raises(IndexError):
        wrapped.read("emb", (0, 10))


@pytest.mark.parametrize("block", [1 << 20, 3])
def test_what_is_read_is_what_was_announced(
    block: int, found: tuple[Piece, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same order; only the mean of all rows comes without notice."""
    monkeypatch.setattr("dopkit.vocabulary.checkpoint._BLOCK", block)
    one, two = model(tmp_path / "one", 5), model(tmp_path / "two", 6)
    wrapped = wrap(0, [one, two], [piece for piece in found if not piece.mean])
    said = [(source.ref.name, name, rows) for source, name, rows in wrapped.reads("emb", (1, 5))]
    pair = [("two", "emb", (0, 2))] if block > 3 else [("two", "emb", (0, 1)), ("two", "emb", (1, 2))]
    assert said == [("one", "emb", (4, 5)), *pair, ("one", "emb", (0, 1)), ("two", "emb", (5, 6))]
    assert list(wrapped.reads("other", (0, 2))) == [(one, "other", (0, 2))]
    happened = []
    for member in (one, two):
        read = member.read

        def log(name: str, rows: tuple[int, int] | None = None, member: Checkpoint = member, read=read):  # noqa: ANN001, ANN202
            happened.append((member.ref.name, name, rows))
            return read(name, rows)

        member.read = log  # type: ignore[method-assign]
    wrapped.read("emb", (1, 5))
    assert happened == said


def test_a_model_without_such_a_tensor_gives_no_rows(tmp_path: Path) -> None:
    one, two = model(tmp_path / "one", 3), model(tmp_path / "two", 3, seed=1)
    found = (Piece(0, 2, ((0, 0),), True), Piece(2, 3, ((1, 2),), True), Piece(3, 4, ((0, 2), (1, 0)), True))
    wrapped = VocabularyCheckpoint(one, [one, two], found, {"emb": ["emb", None]}, {})
    a = one.read("emb")
    mean = torch.cat([a[:2], a[2:]]).mean(0)
    assert torch.allclose(wrapped.read("emb"), torch.stack([a[0], a[1], mean, a[2]]))


def test_side_files_take_the_place_of_others(tmp_path: Path) -> None:
    one = model(tmp_path / "one", 3)
    (tmp_path / "one" / "tokenizer.json").write_text("own")
    (tmp_path / "one" / "vocab.json").write_text("own")
    one.side_files[:] = ["tokenizer.json", "vocab.json", "LICENSE"]
    (tmp_path / "one" / "LICENSE").write_text("MIT")
    (tmp_path / "elsewhere").write_text("else")
    files = {"tokenizer.json": b"made", "vocab.json": None, "merges.txt": lambda: tmp_path / "elsewhere"}
    wrapped = VocabularyCheckpoint(one, [one], (), {}, files)
    assert wrapped.side_files == ["LICENSE", "merges.txt", "tokenizer.json"]
    assert {name: wrapped.side_file(name).read_text() for name in wrapped.side_files} == {
        "LICENSE": "MIT", "merges.txt": "else", "tokenizer.json": "made",
    }  # fmt: skip
    with pytest.raises(FileNotFoundError):
        wrapped.side_file("vocab.json")
    made = wrapped.side_file("tokenizer.json")
    wrapped.close()
    assert not made.exists()


def test_the_number_of_rows_in_a_config() -> None:
    assert with_rows({"vocab_size": 8, "hidden_size": 4}, 9) == {"vocab_size": 9, "hidden_size": 4}
    nested = {"text_config": {"vocab_size": 8, "deep": {"vocab_size": 8}}, "vision_config": {"vocab_size": 5}}
    assert with_rows(nested, 9) == {
        "text_config": {"vocab_size": 9, "deep": {"vocab_size": 9}}, "vision_config": {"vocab_size": 5},
    }  # fmt: skip
    assert with_rows({"text_config": {"a": 1}}, 9) == {"text_config": {"a": 1, "vocab_size": 9}}
    assert with_rows({"a": 1}, 9) == {"a": 1, "vocab_size": 9}


def test_special_tokens_in_a_config() -> None:
    config = {
        "eos_token_id": [1, 2], "bos_token_id": 0, "pad_token_id": None, "image_token_index": 3, "num_labels": 2,
        "text_config": {"bos_token_id": 0, "eos_token_id": 2}, "suppress_tokens": [-1, 0, 3],
    }  # fmt: skip
    moved = {0: 10, 1: 11, 2: 12}
    assert with_special_tokens(config, None, moved.get) == {
        "eos_token_id": [11, 12], "bos_token_id": 10, "pad_token_id": None, "image_token_index": None, "num_labels": 2,
        "text_config": {"bos_token_id": 10, "eos_token_id": 12}, "suppress_tokens": [-1, 10],
    }  # fmt: skip
    own = {"eos_token_id": 7, "bos_token_id": 0, "text_config": {"eos_token_id": 8}}
    told = with_special_tokens(config, own, moved.get)
    assert (told["eos_token_id"], told["bos_token_id"]) == (7, 0)
    assert told["text_config"] == {"bos_token_id": 10, "eos_token_id": 8}
