"""The relations of task vectors as text: tables that fit a terminal, and what they mean in a sentence or two."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean

from dopkit.cli.output import table
from dopkit.errors import count
from dopkit.places import Place, part_order
from dopkit.relations import Relations, TensorRelations, mean_shares, total

_ROWS = 12  # of the table of layers, before neighbouring layers share a row
_LOWEST = 5  # tensors listed by name
_LONGEST_NAME = 40  # of a model in a table

# Cosines: above, two models are as good as one; within, they are as good as orthogonal.
_EQUAL, _ORTHOGONAL = 0.99, 0.1


def describe(relations: Relations, every_layer: bool, width: int) -> str:
    """Everything that ``dopkit inspect`` prints, in lines of at most ``width`` characters where names allow it."""
    several = len(relations.models) > 1
    sections = [
        _models(relations),
        _cosines(relations, width) if several else "",
        _parts_and_layers(relations, every_layer),
        _lowest(relations, width) if several else "",
        "\n".join(textwrap.fill(sentence, width) for sentence in sentences(relations)),
    ]
    return "\n\n".join(section for section in sections if section)


def _models(relations: Relations) -> str:
    products = relations.products
    shares: Sequence[float | None] = relations.rank_shares or [None] * len(relations.models)
    rows = [("", "model", "norm", "of base", *_rank_title(relations))]
    columns = zip(relations.models, products.norms, products.relative, shares, strict=True)
    for number, (name, norm, relative, share) in enumerate(columns, 1):
        ranks = (_percent(share),) if relations.energy is not None else ()
        rows.append((str(number), _cut(name, _LONGEST_NAME), f"{norm:.3g}", _percent(relative), *ranks))
    head = f"task vectors of {count(len(relations.models), 'model')} over {count(len(relations.tensors), 'tensor')}"
    title = f"{head}; norm of the base {products.base_norm:.3g}"
    return "\n".join([title, table(rows, right=(0, 2, 3, 4)), *_legend(relations)])


def _rank_title(relations: Relations) -> tuple[str, ...]:
    return () if relations.energy is None else ("rank",)


def _legend(relations: Relations) -> Iterator[str]:
    yield "of base: the norm as a share of the base's"
    if relations.energy is not None:
        energy = _percent(relations.energy)
        yield f"rank: how many of the singular values hold {energy} of their sum, on average"


def _cosines(relations: Relations, width: int) -> str:
    """The lower triangle, with names if they fit beside it; else as many columns side by side as fit."""
    cosines, size = relations.products.cosines, len(relations.models)
    names = [f"{number} {_cut(name, _LONGEST_NAME)}" for number, name in enumerate(relations.models, 1)]
    if max(map(len, names)) + 8 * (size - 1) > width:
        names = [str(number) for number in range(1, size + 1)]
    per_table = max(1, (width - max(6, *map(len, names))) // 8)
    tables = []
    for start in range(0, size - 1, per_table):
        columns = range(start, min(start + per_table, size - 1))
        rows = [("cosine", *(str(column + 1) for column in columns))]
        for row in range(start + 1, size):
            rows.append((names[row], *(_number(cosines[row][column]) if column < row else "" for column in columns)))
        tables.append(table(rows, right=range(1, 1 + len(columns))))
    return "\n\n".join(tables)


def _parts_and_layers(relations: Relations, every_layer: bool) -> str:
    if every_layer:
        layers = _Layers(relations, together=1)
        places = relations.groups(lambda place: (*layers.key(place), *part_order(place.part), place.part))
        rows = [((layers.name(key[1], key[2]), key[-1]), places[key]) for key in sorted(places)]
        return _groups(relations, ("layer", "part"), rows)
    parts = relations.groups(lambda place: place.part)
    tables = [_groups(relations, ("part",), [((part,), parts[part]) for part in sorted(parts, key=part_order)])]
    layers = _Layers(relations)
    bands = relations.groups(layers.key)
    if len(bands) > 1:
        tables.append(_groups(relations, ("layer",), [((layers.name(*key[1:]),), bands[key]) for key in sorted(bands)]))
    return "\n\n".join(tables)


class _Layers:
    """How a table orders and calls layers; ``together`` neighbours share a row, by default as many as needed."""

    def __init__(self, relations: Relations, together: int | None = None) -> None:
        self._last: dict[str, int] = {}  # of each stack
        for place in (tensor.place for tensor in relations.tensors if tensor.place.layer is not None):
            self._last[place.stack] = max(self._last.get(place.stack, 0), place.layer or 0)
        self._together = together or -(-sum(number + 1 for number in self._last.values()) // _ROWS) or 1
        first = {stack: stack.partition(".")[0] for stack in self._last}
        self._names = first if len(set(first.values())) == len(first) else {stack: stack for stack in first}

    def key(self, place: Place) -> tuple[int, str, int]:
        """Where a place comes in order; what stands outside all layers is first."""
        if place.layer is None:
            return -1, "", 0
        return list(self._last).index(place.stack), place.stack, place.layer - place.layer % self._together

    def name(self, stack: str, start: int) -> str:
        if stack not in self._last:
            return "outside"
        stop = min(start + self._together - 1, self._last[stack])
        prefix = f"{self._names[stack]} " if len(self._last) > 1 else ""
        return f"{prefix}{start}" if start == stop else f"{prefix}{start}-{stop}"


def _groups(
    relations: Relations, titles: tuple[str, ...], groups: Iterable[tuple[tuple[str, ...], list[TensorRelations]]]
) -> str:
    """A row for each group of tensors: relative norm and rank as means over the models, cosines over their pairs."""
    size = len(relations.models)
    rows = [(*titles, "tensors", "of base", *(("cosine",) if size > 1 else ()), *_rank_title(relations))]
    for key, tensors in groups:
        products = total((tensor.products for tensor in tensors), size)
        relative = [value for value in products.relative if value is not None]
        cells = [*key, str(len(tensors)), _percent(fmean(relative) if relative else None)]
        if size > 1:
            cells.append(_range([cosine for cosine, _, _ in products.pairs]))
        if relations.energy is not None:
            shares = mean_shares(tensors)
            cells.append(_percent(fmean(shares)) if shares else "")
        rows.append(tuple(cells))
    return table(rows, right=tuple(range(len(titles), len(rows[0]))))


def _lowest(relations: Relations, width: int) -> str:
    """The matrices whose task vectors oppose each other most; vectors are short, so that theirs say little."""
    large = [tensor for tensor in relations.tensors if sum(length > 1 for length in tensor.shape) > 1]
    found = sorted(
        (cosine, tensor.name, one, other)
        for tensor in large or relations.tensors
        for cosine, one, other in tensor.products.pairs
    )[:_LOWEST]
    if not found:
        return ""
    rows = [("lowest", "models", "tensor")]
    for cosine, name, one, other in found:
        pair = f"{one + 1}, {other + 1}"
        rows.append((_number(cosine), pair, _cut(name, max(20, width - 18))))
    return table(rows, right=(0,))


def sentences(relations: Relations) -> Iterator[str]:
    """What the numbers mean: a zero task vector, equal models, how the others stand to each other, who moved most."""
    products, names = relations.products, relations.models
    unmoved = [name for name, norm in zip(names, products.norms, strict=True) if norm == 0]
    for name in unmoved:
        yield f"{name} equals the base in every tensor that is merged."
    pairs = products.pairs
    equal = [(cosine, i, j) for cosine, i, j in pairs if cosine > _EQUAL]
    for cosine, i, j in equal[:3]:
        yield f"{names[i]} and {names[j]} are nearly one model (cosine {cosine:.4f})."
    rest = [cosine for cosine, _, _ in pairs if cosine <= _EQUAL]
    if rest:
        yield _standing(min(rest), max(rest), "The others" if equal else "The task vectors")
    moved = [norm for norm in products.norms if norm]
    if moved and max(moved) > 2 * min(moved):
        far, near = products.norms.index(max(moved)), products.norms.index(min(moved))
        yield f"{names[far]} moved {max(moved) / min(moved):.1f} times as far from the base as {names[near]}."


def _standing(lowest: float, highest: float, who: str) -> str:
    between = f"cosine {_number(lowest)}" if lowest == highest else f"cosines {_number(lowest)} to {_number(highest)}"
    if lowest < -_ORTHOGONAL:
        return f"{who} partly oppose each other ({between}): what one model learned, another takes back in part."
    if highest <= _ORTHOGONAL:
        return f"{who} are nearly orthogonal ({between}): each model moved in a direction of its own."
    return f"{who} partly agree ({between}): models share a part of what they learned."


def _number(value: float | None) -> str:
    """A cosine to two decimals, to three where it is small."""
    if value is None:
        return "-"
    digits = 3 if abs(value) < 0.0995 else 2
    return f"{round(value, digits) + 0.0:.{digits}f}"  # no minus before a zero


def _range(values: Sequence[float]) -> str:
    if not values:
        return "-"
    low, high = _number(min(values)), _number(max(values))
    return low if low == high else f"{low} .. {high}"


def _percent(share: float | None) -> str:
    """A share to two digits: ``1.2 %``."""
    return "-" if share is None else f"{float(f'{100 * share:.2g}'):g} %"


def _cut(name: str, length: int) -> str:
    """A long name without its middle."""
    if len(name) <= length:
        return name
    first = (length - 3) // 3  # the end tells more
    return f"{name[:first]}...{name[first + 3 - length :]}"
