"""The rows of the tables: which merges are made, and which models are put together from each. Data alone.

`other` and `scale` of a method that merges matrices do not reach the matrices' own merge: the models of all their
settings are put together from one merge (recombine.py), which is why the rows hang on the merges.
"""

from typing import Any, NamedTuple

OTHERS, SCALES = ("mean", "half", "base"), ("1", "norm")


class Row(NamedTuple):
    """One line of a table. `other` and `scale` are None where the method has none."""

    other: str | None = None
    scale: str | None = None


class Merge(NamedTuple):
    """One merge that dopkit makes for every order. Its rows begin with the one that it is itself."""

    name: str
    method: str
    parameters: dict[str, Any]
    rows: tuple[Row, ...] = (Row(),)
    ordered: bool = True


ALL_SETTINGS = tuple(Row(other, scale) for other in OTHERS for scale in SCALES)
MEAN_ONLY = tuple(Row("mean", scale) for scale in SCALES)

MERGES = (
    Merge("average", "average", {}, ordered=False),
    Merge("task_arithmetic, lambda 0.3", "task_arithmetic", {"lambda": 0.3}, ordered=False),
    Merge("task_arithmetic, lambda 1", "task_arithmetic", {"lambda": 1.0}, ordered=False),
    Merge("ties", "ties", {"density": 0.2}, ordered=False),
    Merge("magmax, lambda 0.5", "magmax", {}),
    Merge("magmax, lambda 1", "magmax", {"lambda": 1.0}),
    Merge("opcm", "opcm", {}),
    Merge("nullspace", "nullspace", {}, (Row("mean"), Row("base"))),
    Merge("wudi", "wudi", {}, MEAN_ONLY, ordered=False),
    Merge("dop exact, last", "dop", {}, ALL_SETTINGS),
    Merge("dop exact, last, alpha 0.5", "dop", {"alpha": 0.5}, MEAN_ONLY),
    Merge("dop exact, last, alpha by-count", "dop", {"alpha": "by-count"}, MEAN_ONLY),
    Merge("dop exact, all", "dop", {"history": "all"}, ALL_SETTINGS, ordered=False),
    Merge("dop adam, last", "dop", {"solver": "adam"}, ALL_SETTINGS),
)
