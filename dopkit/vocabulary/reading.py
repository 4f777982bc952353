"""The tokens of a model and their ids, read from its tokenizer files as data. No code of a tokenizer is run.

tokenizer.json says it all; vocab.json and vocab.txt say enough to compare. What only a library can read (a lone file of
SentencePiece or tiktoken) is equal to another by its bytes or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from dopkit import hub
from dopkit.checkpoints import AdapterCheckpoint, Checkpoint, files
from dopkit.checkpoints.folder import file_names
from dopkit.errors import CheckpointError, Problem
from dopkit.refs import ModelRef

FAST = "tokenizer.json"
CONFIG = "tokenizer_config.json"
ADDED = "added_tokens.json"
_READABLE = (FAST, "vocab.json", "vocab.txt")
_UNREADABLE = ("*.model", "*.tiktoken", "tekken.json")

Ids = Mapping[str, int]


@dataclass(frozen=True)
class TokenizerFiles:
    """The small files of a model that has a tokenizer."""

    shown: str
    names: frozenset[str]
    path: Callable[[str], Path]  # of a file by its name; fetches it
    digests: Callable[[str], frozenset[str]]

    @cached_property
    def main(self) -> str | None:
        """The file that holds the vocabulary; None where there is no tokenizer."""
        patterns = (*_READABLE, *_UNREADABLE)
        return next((name for one in patterns for name in sorted(self.names) if fnmatchcase(name, one)), None)

    def text(self, name: str) -> str:
        """Raises CheckpointError, HubError."""
        return files.read_text(self.path(name), self.shown)

    def has_same(self, other: TokenizerFiles, name: str) -> bool:
        """Whether both have the file with the same bytes, or neither has it; False as well where that is not known."""
        if not {name} & self.names & other.names:
            return not {name} & (self.names | other.names)
        return bool(self.digests(name) & other.digests(name))

    def equal(self, other: TokenizerFiles) -> bool:
        """Whether both hold the same tokens, as far as the bytes of the files tell; the small ones may be looked into.

        Raises CheckpointError, HubError.
        """
        if self.main != other.main or not self.has_same(other, str(self.main)):
            return False
        if all(self.has_same(other, name) for name in (ADDED, CONFIG)):
            return True
        mine, its = ({token: number for token, number, _ in _more_added(one)} for one in (self, other))
        return mine == its


def tokenizer_files(checkpoint: Checkpoint) -> TokenizerFiles | None:
    """Those of an opened model, of an adapter its own before its base's; None when there are none."""
    if isinstance(checkpoint, AdapterCheckpoint):
        return tokenizer_files(checkpoint.adapter) or tokenizer_files(checkpoint.base)
    names = frozenset(checkpoint.side_files)
    found = TokenizerFiles(checkpoint.ref.short, names, checkpoint.side_file, checkpoint.digests)
    return found if found.main else None


def files_of(ref: ModelRef) -> TokenizerFiles:
    """Those of a model that is not opened, and may hold no weights; a Hub ref must be pinned.

    Raises CheckpointError when there is no tokenizer, HubError.
    """
    if ref.adapter is not None:
        try:
            return files_of(ref.adapter)
        except CheckpointError:
            return files_of(ref.without_adapter)
    if ref.folder is not None:
        folder = ref.folder
        names = frozenset(file_names(folder)) if folder.is_dir() else frozenset()
        found = TokenizerFiles(ref.short, names, lambda name: folder / name, lambda name: files.digests(folder / name))
    else:
        listing = hub.listing(ref)
        known = listing.hashes
        found = TokenizerFiles(
            ref.short,
            frozenset(listing.sizes),
            lambda name: hub.fetch(ref, name),
            lambda name: frozenset({known[name]} if name in known else ()),
        )
    if found.main is None:
        raise CheckpointError(
            f"{ref.short} holds no tokenizer", [Problem("", f"none of {', '.join(_READABLE)} is there")]
        )
    return found


@dataclass(frozen=True)
class Vocabulary:
    """Every token of a model with its id, and how those that were added to the vocabulary behave."""

    files: TokenizerFiles
    ids: Ids  # added tokens as well
    added: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # as entries of tokenizer.json
    data: Mapping[str, Any] | None = None  # of tokenizer.json

    @property
    def shown(self) -> str:
        return self.files.shown

    @property
    def length(self) -> int:
        """How many rows it takes to give every token one."""
        return max(self.ids.values(), default=-1) + 1


@dataclass(frozen=True)
class _Core:
    """What the main file says."""

    ids: Ids
    added: Mapping[str, Mapping[str, Any]]
    data: Mapping[str, Any] | None


class Reader:
    """Reads vocabularies; a file that is known by its bytes is not fetched or parsed again."""

    def __init__(self) -> None:
        self._known: list[tuple[TokenizerFiles, _Core]] = []

    def read(self, found: TokenizerFiles) -> Vocabulary | None:
        """None when its files are of a kind that cannot be read as data. Raises CheckpointError, HubError."""
        core = self._core(found)
        if core is None:
            return None
        ids, added = dict(core.ids), dict(core.added)
        for token, number, entry in _more_added(found):
            if token not in ids:
                ids[token] = number
                added[token] = entry
        return Vocabulary(found, ids, added, core.data)

    def _core(self, found: TokenizerFiles) -> _Core | None:
        main = str(found.main)
        for other, core in self._known:
            if main == other.main and found.has_same(other, main):
                return core
            if main not in _READABLE and main in other.names and found.has_same(other, main):
                return _without_added(core)  # beside which the other has a file that can be read
        read = _read(main, found) if main in _READABLE else None
        if read is not None:
            self._known.append((found, read))
        return read


def _read(main: str, found: TokenizerFiles) -> _Core | None:
    text = found.text(main)
    if main == "vocab.txt":
        return _Core({line: number for number, line in enumerate(text.splitlines())}, {}, None)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{found.shown}: {main} is not valid JSON ({error})") from None
    if main == FAST:
        return _from_fast(data)
    return _Core(data, {}, None) if _is_ids(data) else None


def _from_fast(data: Any) -> _Core | None:
    """The vocabulary of a tokenizer.json; None when it is built in another way than the four kinds there are."""
    model = data.get("model") if isinstance(data, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in vocab):
        vocab = {str(piece): number for number, (piece, _) in enumerate(vocab)}
    added = data.get("added_tokens") or [] if isinstance(data, dict) else []
    if (
        not isinstance(vocab, dict)
        or not _is_ids(vocab)
        or not all(_is_ids({one.get("content"): one.get("id")}) for one in added)
    ):
        return None
    ids = {**vocab, **{one["content"]: one["id"] for one in added}}
    return _Core(ids, {one["content"]: one for one in added}, data)


def _is_ids(data: Any) -> bool:
    return isinstance(data, dict) and all(
        isinstance(token, str) and isinstance(number, int) and number >= 0 for token, number in data.items()
    )


def _without_added(core: _Core) -> _Core:
    """The tokens of the model alone, without those that were added to it later."""
    vocab: Any = core.data["model"]["vocab"] if core.data is not None else core.ids
    own = vocab if isinstance(vocab, dict) else {pair[0] for pair in vocab}
    return _Core({token: number for token, number in core.ids.items() if token in own}, {}, None)


def _more_added(found: TokenizerFiles) -> list[tuple[str, int, Mapping[str, Any]]]:
    """Tokens that stand in other files than the main one: with their ids, as entries of tokenizer.json."""
    result: list[tuple[str, int, Mapping[str, Any]]] = []
    if ADDED in found.names and _is_ids(more := _json(found, ADDED)):
        result += [(token, number, _entry(number, {"content": token})) for token, number in more.items()]
    decoder = _json(found, CONFIG).get("added_tokens_decoder") if CONFIG in found.names else None
    for number, one in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(one, dict) and isinstance(one.get("content"), str) and number.isdecimal():
            result.append((one["content"], int(number), _entry(int(number), one)))
    return result


def _json(found: TokenizerFiles, name: str) -> dict[str, Any]:
    try:
        data = json.loads(found.text(name))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{found.shown}: {name} is not valid JSON ({error})") from None
    return data if isinstance(data, dict) else {}


def _entry(number: int, one: Mapping[str, Any]) -> dict[str, Any]:
    flags = {key: bool(one.get(key, False)) for key in ("single_word", "lstrip", "rstrip", "normalized", "special")}
    return {"id": number, "content": one["content"], **flags}


def added_entry(number: int, token: str, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An added token as tokenizer.json holds it, with the behaviour of ``like``, or a plain one."""
    return _entry(number, {**(like or {}), "content": token})
