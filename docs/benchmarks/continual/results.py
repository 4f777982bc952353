"""The lines that harness.py writes, read back: which row is whose, its mean over the orders, and what differs of two.

Knows nothing of how they are shown. ACC and BWT are shares, as in the lines; the tables show percent.
"""

import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from rows import MERGES, Merge, Row

from dopkit import methods

Line = dict[str, Any]
Key = tuple[str, str | None, str | None]  # merge, other, scale


class Spread(NamedTuple):
    """A number's mean over the orders, and its standard deviation (n - 1); None from one order."""

    mean: float
    deviation: float | None


class Difference(NamedTuple):
    """One row minus another over the orders that both have, with two standard errors of it.

    Over the orders alone, a difference of two merges that hardly depend on the order looks sure though it may hang on
    one task; so there is one over the tasks too (each task's difference is its mean over the orders).
    """

    mean: float
    over_orders: float | None
    over_tasks: float | None
    orders: int

    @property
    def error(self) -> float:
        """The larger of the two that are known."""
        return max(self.over_orders or 0.0, self.over_tasks or 0.0)

    @property
    def clear(self) -> bool:
        """More than twice either error."""
        errors = (self.over_orders, self.over_tasks)
        return all(error is not None and abs(self.mean) > 2 * error for error in errors)


def read(file: Path) -> list[Line]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def of(lines: list[Line], key: Key) -> dict[int, Line]:
    """The lines of one row by their order's seed."""
    return {line["seed"]: line for line in lines if "seed" in line and _key(line) == key}


def key_of(merge: Merge, row: Row) -> Key:
    return merge.name, row.other, row.scale


def every_key() -> list[Key]:
    """Every row, as rows.py lists them."""
    return [key_of(merge, row) for merge in MERGES for row in merge.rows]


def defaults() -> set[Key]:
    """The rows whose parameters are dopkit's defaults, as its parameter classes have them."""
    return {key_of(merge, row) for merge in MERGES for row in merge.rows if _is_default(merge, row)}


def spread(values: list[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def difference(lines: list[Line], one: Key, other: Key) -> Difference | None:
    """`one` minus `other` in ACC; None without an order that both have."""
    ones, others = of(lines, one), of(lines, other)
    seeds = sorted(ones.keys() & others.keys())
    if not seeds:
        return None
    by_order = [ones[seed]["acc"] - others[seed]["acc"] for seed in seeds]
    by_task = [
        statistics.fmean(ones[seed]["scores"][task] - others[seed]["scores"][task] for seed in seeds)
        for task in ones[seeds[0]]["scores"]
    ]
    return Difference(statistics.fmean(by_order), _error(by_order), _error(by_task), len(seeds))


def _key(line: Line) -> Key:
    return line["merge"], line["other"], line["scale"]


def _is_default(merge: Merge, row: Row) -> bool:
    model = methods.find(merge.method).parameters
    return model.model_validate(given(merge, row)).in_force() == model().in_force()


def given(merge: Merge, row: Row) -> dict[str, Any]:
    """The parameters of a recipe whose merge is this row."""
    own = {} if row.other is None else {"other": row.other}
    if row.scale is not None:
        own["scale"] = "norm" if row.scale == "norm" else float(row.scale)
    return merge.parameters | own


def _error(values: list[float]) -> float | None:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
