"""What is done to the vocabulary, in sentences for the plan and the receipt. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from dopkit.errors import count
from dopkit.planning.matching import Model
from dopkit.recipe.tokenizer import TokenizerSettings
from dopkit.vocabulary.comparing import shown
from dopkit.vocabulary.reading import Ids, Vocabulary
from dopkit.vocabulary.rows import Member, Piece, Target, taken
from dopkit.vocabulary.uniting import United


def summary(settings: TokenizerSettings, united: United, models: int, rows: int) -> str:
    """``tokenizer: union of 3, 32,004 tokens (4 added), padded to 32,064``."""
    whose = f"union of {models}" if settings.source == "union" else f"that of {united.origin.shown}"
    new = f" ({united.new:,} added)" if united.new else ""
    padded = f", padded to {rows:,}" if rows > united.length else ""
    return f"tokenizer: {whose}, {united.length:,} tokens{new}{padded}"


def left_out(models: Sequence[Model], known: Sequence[Vocabulary], ids: Ids) -> Iterator[str]:
    """The tokens that have no place in the result."""
    for model, own in zip(models, known, strict=True):
        if lost := sorted((token for token in own.ids if token not in ids), key=lambda token: own.ids[token]):
            what = f"{count(len(lost), 'token')} {'is' if len(lost) == 1 else 'are'} not in the result's tokenizer"
            yield f"{model.source.ref.short}: {what}: {shown(lost)}"


def row_notes(
    models: Sequence[Model], own: int, members: Sequence[Member], target: Target, found: Sequence[Piece]
) -> Iterator[str]:
    """What becomes of one model's rows beyond its tokens, and where those of other tokens come from."""
    name, rows = models[own].source.ref.short, members[own].rows
    if rows != target.rows:
        what = f"its embedding of {rows:,} rows gets {target.rows:,}"
        length = max((*target.ids.values(), *members[own].ids.values()), default=-1) + 1
        if min(rows, target.rows) >= length:
            what += f": those beyond the {length:,} tokens hold none"
        yield f"{name}: {what}"
    sources: Counter[str] = Counter()
    for piece in taken(own, found):
        sources[_whence(models, piece)] += piece.stop - piece.start
    if sources:
        parts = ", ".join(f"{number:,} {whence}" for whence, number in sources.items())
        yield f"{name}: rows that are not its own: {parts}"


def _whence(models: Sequence[Model], piece: Piece) -> str:
    if piece.mean:
        return "the mean of its rows"
    if not piece.places:
        return "zero"
    names = [models[one].source.ref.short for one, _ in piece.places]
    return f"of {names[0]}" if len(names) == 1 else f"the mean over {', '.join(names)}"
