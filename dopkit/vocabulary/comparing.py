"""Whether two vocabularies are one, and the first token that says they are not. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator

from dopkit.vocabulary.reading import Vocabulary


def difference(base: Vocabulary, other: Vocabulary) -> str | None:
    """How ``other`` differs from ``base``, as a clause about it that names the first token; None when it does not."""
    if base.ids == other.ids:
        return None
    kinds = {kind: list(tokens) for kind, tokens in _kinds(base, other)}
    number, (kind, tokens) = sum(map(len, kinds.values())), next(one for one in kinds.items() if one[1])
    token = tokens[0]
    if kind == "moved":
        said = f"its token {token!r} has the id {other.ids[token]}, in {base.shown} {base.ids[token]}"
    elif kind == "more":
        said = f"its token {token!r} (id {other.ids[token]}) is not in {base.shown}"
    else:
        said = f"lacks the token {token!r} (id {base.ids[token]}) of {base.shown}"
    return said + (f", and {number - 1:,} more of its tokens differ" if number > 1 else "")


def _kinds(base: Vocabulary, other: Vocabulary) -> Iterator[tuple[str, Iterator[str]]]:
    """The tokens that differ, by id; a moved one says the most."""
    by_id = sorted(other.ids, key=lambda token: other.ids[token])
    yield "moved", (token for token in by_id if base.ids.get(token, other.ids[token]) != other.ids[token])
    yield "more", (token for token in by_id if token not in base.ids)
    lacking = sorted((token for token in base.ids if token not in other.ids), key=lambda token: base.ids[token])
    yield "lacking", iter(lacking)


def shown(tokens: list[str], most: int = 3) -> str:
    """Some tokens, for a note."""
    more = f" and {len(tokens) - most:,} more" if len(tokens) > most else ""
    return ", ".join(map(repr, tokens[:most])) + more
