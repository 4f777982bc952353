"""The tokens of several models in one tokenizer: ids for the new ones, and a tokenizer.json that has them. Pure data.

The first tokenizer keeps its ids, its rules of cutting text up and its merges. After its tokens come the ordinary ones
of the others, model after model in order of their ids, then those that others have added, then those that the recipe
adds. New merges come after the old ones, so that text is cut up as before wherever the old ones suffice.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dopkit.errors import Problem
from dopkit.vocabulary.comparing import shown
from dopkit.vocabulary.reading import FAST, Vocabulary, added_entry

_RESAVE = "Save it with transformers' AutoTokenizer, which writes a tokenizer.json."


@dataclass
class United:
    """The vocabulary of the result."""

    origin: Vocabulary  # whose files are written
    ids: dict[str, int]
    ordinary: dict[str, Vocabulary] = field(default_factory=dict)  # new tokens of the model, and whose they are
    added: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # new ones beside it, as entries
    problems: list[Problem] = field(default_factory=list)
    text: bytes | None = None  # of tokenizer.json, where anything is new

    @property
    def new(self) -> int:
        return len(self.ordinary) + len(self.added)

    @property
    def length(self) -> int:
        return max(self.ids.values(), default=-1) + 1


def unite(
    origin: Vocabulary, others: Sequence[Vocabulary], wanted: Iterable[str], everyone: Sequence[Vocabulary]
) -> United:
    """The tokens of ``origin`` and ``others``, and those ``wanted`` besides.

    A wanted token behaves as in the first of ``everyone`` that added it, or is a plain one.
    """
    found = United(origin, dict(origin.ids))
    for other in others:
        for token in _by_id(other):
            if token not in found.ids and token not in other.added:
                found.ordinary[token] = other
                found.ids[token] = found.length
    for other in others:
        for token in _by_id(other):
            if token not in found.ids:
                _add(found, token, other.added[token])
    for token in wanted:
        if token not in found.ids:
            _add(found, token, next((one.added[token] for one in everyone if token in one.added), None))
    if found.new:
        found.problems = list(_problems(found))
        if not found.problems:
            found.text = json.dumps(_edited(found), ensure_ascii=False).encode()
            found.problems = list(_misread(found))
    return found


def _add(found: United, token: str, like: Mapping[str, Any] | None) -> None:
    number = found.length
    found.added[token] = added_entry(number, token, like)
    found.ids[token] = number


def _by_id(vocabulary: Vocabulary) -> list[str]:
    return sorted(vocabulary.ids, key=lambda token: vocabulary.ids[token])


def _problems(found: United) -> Iterator[Problem]:
    """What keeps new tokens from being written down."""
    origin = found.origin
    if origin.data is None:
        what = f"its tokenizer cannot take in {shown([*found.ordinary, *found.added])}: it has no {FAST}"
        yield Problem(origin.shown, what, _RESAVE)
        return
    kind = _kind(origin)
    for other in {id(one): one for one in found.ordinary.values()}.values():
        tokens = [token for token, whose in found.ordinary.items() if whose is other]
        if other.data is None:
            yield Problem(other.shown, f"its token {tokens[0]!r} cannot be taken over: it has no {FAST}", _RESAVE)
        elif _kind(other) != kind:
            what = f"is a {_kind(other)} tokenizer and {origin.shown} a {kind}: there is no union of the two"
            yield Problem(other.shown, what, "Keep one with `tokenizer: base`, or another model's.")
    if kind == "Unigram" and found.ordinary and set(found.ids.values()) != set(range(found.length)):
        yield Problem(origin.shown, "its ids have gaps, which a Unigram tokenizer cannot grow beyond")


def _kind(vocabulary: Vocabulary) -> str:
    """BPE, WordPiece, WordLevel or Unigram."""
    assert vocabulary.data is not None
    model = vocabulary.data["model"]
    return str(model.get("type") or ("Unigram" if isinstance(model["vocab"], list) else "BPE"))


def _edited(found: United) -> dict[str, Any]:
    """The origin's tokenizer.json with everything that is new."""
    assert found.origin.data is not None
    data = dict(found.origin.data)
    added = {**found.origin.added, **found.added}
    data["added_tokens"] = sorted(added.values(), key=lambda one: one["id"])
    if found.ordinary:
        # The model holds the added tokens as well now: they keep ids between those of others only if it does.
        model = dict(data["model"])
        model["vocab"] = _pieces(found) if isinstance(model["vocab"], list) else _sorted(found.ids)
        if "merges" in model:
            model["merges"] = [*model["merges"], *_new_merges(found, model["merges"])]
        data["model"] = model
    return data


def _sorted(ids: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(ids.items(), key=lambda pair: pair[1]))


def _pieces(found: United) -> list[list[Any]]:
    """The list of a Unigram model: each piece with the score it has in its own model."""
    assert found.origin.data is not None
    scores = dict(found.origin.data["model"]["vocab"])
    never = min(scores.values(), default=0.0) - 10.0  # an added token is cut out of a text before the model sees it
    for other in {id(one): one for one in found.ordinary.values()}.values():
        assert other.data is not None
        own = dict(other.data["model"]["vocab"])
        scores |= {token: own[token] for token, whose in found.ordinary.items() if whose is other}
    return [[token, scores.get(token, never)] for token in _sorted(found.ids)]


def _new_merges(found: United, before: Sequence[Any]) -> Iterator[Any]:
    """The merges of the other models that make a new token, as the origin spells them."""
    as_text = bool(before) and isinstance(before[0], str)
    known = {_pair(merge) for merge in before}
    for other in {id(one): one for one in found.ordinary.values()}.values():
        assert other.data is not None
        for merge in other.data["model"].get("merges", ()):
            pair = _pair(merge)
            made = "".join(pair)
            if made in found.ordinary and pair not in known and found.ids.keys() >= set(pair):
                known.add(pair)
                yield " ".join(pair) if as_text else list(pair)


def _pair(merge: Any) -> tuple[str, ...]:
    return tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge)


def _misread(found: United) -> Iterator[Problem]:
    """Whether the tokenizer that is written gives every token its id, asked of the library that will read it."""
    from tokenizers import Tokenizer

    assert found.text is not None
    try:
        read = Tokenizer.from_str(found.text.decode()).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises nothing else
        yield Problem(found.origin.shown, f"its tokenizer cannot take in other tokens ({error})")
        return
    wrong = [token for token, number in found.ids.items() if read.get(token) != number]
    if wrong:
        what = f"its tokenizer cannot take in other tokens: {shown(wrong)} would get another id"
        yield Problem(found.origin.shown, what, "Keep one with `tokenizer: base`.")
