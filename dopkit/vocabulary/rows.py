"""Which row of which model becomes which row of the result, for all tensors that follow the tokens.

Plain numbers; knows no tensors. Models are counted; ``rows`` are those of a model's embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dopkit.vocabulary.reading import Ids

Place = tuple[int, int]  # a model and a row of it


@dataclass(frozen=True)
class Member:
    """One model: its tokens, how many rows it has, and which of them hold none."""

    ids: Ids
    rows: int

    def has(self, token: str) -> bool:
        """Whether there is a row for it: a tokenizer may have been given more tokens than its model."""
        return self.ids.get(token, self.rows) < self.rows


@dataclass(frozen=True)
class Setting:
    """What the recipe says of one token: the place of its row, None for a row of zeros."""

    place: Place | None
    force: bool


@dataclass(frozen=True)
class Piece:
    """Rows ``start`` to ``stop`` of the result, the mean of as many rows from each of ``places`` on.

    Without places they are zero, or with ``mean`` the mean of the model's rows that hold tokens.
    """

    start: int
    stop: int
    places: tuple[Place, ...]
    token: bool  # whether they hold tokens
    mean: bool = False


@dataclass(frozen=True)
class Target:
    """The vocabulary of the result, and how many rows it gets."""

    ids: Ids
    rows: int


def pieces(
    target: Target, members: Sequence[Member], own: int, base: int | None, padding: int, settings: Mapping[str, Setting]
) -> tuple[Piece, ...]:
    """All rows of the result in order, for the model ``own``.

    A token that it lacks takes what ``settings`` say, else the row of the ``base`` if that has it, else the mean over
    the models that do, else the mean of its own rows. A row without a token stays what it is where the model has such a
    row, else it is that of the model ``padding``, else the mean as well.
    """
    tokens = {number: token for token, number in target.ids.items()}
    used = [frozenset(members[one].ids.values()) for one in (own, padding)]

    def source(row: int) -> tuple[tuple[Place, ...], bool, bool]:
        token = tokens.get(row)
        if token is None:
            for one, ids in zip((own, padding), used, strict=True):
                if row < members[one].rows and row not in ids:
                    return ((one, row),), False, False
            return (), False, True
        return _token(token, members, own, base, settings.get(token))

    return tuple(_joined((row, *source(row)) for row in range(target.rows)))


def _token(
    token: str, members: Sequence[Member], own: int, base: int | None, setting: Setting | None
) -> tuple[tuple[Place, ...], bool, bool]:
    if setting is not None and (setting.force or not members[own].has(token)):
        return ((setting.place,) if setting.place is not None else ()), True, False
    if members[own].has(token):
        return ((own, members[own].ids[token]),), True, False
    holders = [one for one, member in enumerate(members) if member.has(token)]
    chosen = [base] if base is not None and base in holders else holders
    places = tuple((one, members[one].ids[token]) for one in chosen)
    return places, True, not places


def _joined(rows: Iterator[tuple[int, tuple[Place, ...], bool, bool]]) -> Iterator[Piece]:
    """Rows that go on where those before them end, as one piece."""
    start, length, first = 0, 0, None
    for row, places, token, mean in rows:
        if first is not None and first[1:] == (token, mean) and places == _moved(first[0], length):
            length += 1
            continue
        if first is not None:
            yield Piece(start, row, *first)
        start, length, first = row, 1, (places, token, mean)
    if first is not None:
        yield Piece(start, start + length, *first)


def _moved(places: tuple[Place, ...], by: int) -> tuple[Place, ...]:
    return tuple((one, row + by) for one, row in places)


def unchanged(own: int, rows: int, found: Sequence[Piece]) -> bool:
    """Whether the model has the very rows of the result already."""
    return bool(found) and found[-1].stop == rows and all(piece.places == ((own, piece.start),) for piece in found)


def taken(own: int, found: Sequence[Piece]) -> Iterator[Piece]:
    """The pieces that hold tokens and do not come from the model alone."""
    for piece in found:
        if piece.token and [one for one, _ in piece.places] != [own]:
            yield piece
