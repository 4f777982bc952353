"""The rules that methods give to tensors: where the code is and what it needs."""

from __future__ import annotations

from functools import partial

from dopkit.methods import costs
from dopkit.methods.costs import copies, elementwise_effort
from dopkit.methods.dop_terms import Sides
from dopkit.methods.rule import Cut, Rule, Shape


def _copied(name: str) -> Rule:
    """Nothing is computed: the base's tensor is the result."""
    return Rule(name, None, Cut.BLOCKS, True, copies(1), elementwise_effort)


# Not a method's doing: what the recipe or the tensors themselves settle.
BASE = _copied("base")  # taken from the base, because the recipe says so
EQUAL = _copied("equal")  # not arithmetic (integers): must be equal in all models

# Element by element.
MEAN = Rule("mean", "dopkit.methods.average:Mean", Cut.BLOCKS, False, copies(3), elementwise_effort)
HALF = Rule("half", "dopkit.methods.average:Half", Cut.BLOCKS, False, copies(2), elementwise_effort)
SUM = Rule("sum", "dopkit.methods.task_arithmetic:TaskSum", Cut.BLOCKS, True, copies(3), elementwise_effort)
TASK_ARITHMETIC = Rule(
    "task arithmetic", "dopkit.methods.task_arithmetic:TaskArithmetic", Cut.BLOCKS, True, copies(3), elementwise_effort
)
MAGMAX = Rule("magmax", "dopkit.methods.magmax:MagMax", Cut.BLOCKS, True, copies(6), elementwise_effort)


def votes(shape: Shape) -> dict[str, tuple[str, Shape]]:
    return {part: ("F32", shape) for part in ("positive", "negative", "positive_weight", "negative_weight")}


TIES = Rule("ties", "dopkit.methods.ties:Ties", Cut.WHOLE, True, costs.ties_bytes, costs.ties_effort, state=votes)

# Matrices.
DOP_EXACT = Rule(
    "dop exact", "dopkit.methods.dop:Dop", Cut.MATRICES, True, costs.exact_bytes, costs.exact_effort, float64=True,
    least_bytes=costs.least_exact_bytes,
)  # fmt: skip
DOP_ADAM = Rule("dop adam", "dopkit.methods.dop:Dop", Cut.MATRICES, True, costs.adam_bytes, costs.adam_effort)
OPCM = Rule(
    "opcm", "dopkit.methods.opcm:Opcm", Cut.MATRICES, True, costs.triplets_bytes, costs.triplets_effort, float64=True
)
NULLSPACE = Rule(
    "null space", "dopkit.methods.nullspace:Nullspace", Cut.MATRICES, True, costs.triplets_bytes,
    costs.triplets_effort, float64=True,
)  # fmt: skip


def _sums(sides: Sides, shape: Shape) -> dict[str, tuple[str, Shape]]:
    rows, columns = shape[-2:]
    left = {"left": ("F64", (rows, rows))} if sides.rows else {}
    right = {"right": ("F64", (columns, columns))} if sides.columns else {}
    return {
        **left,
        **right,
        "rhs": ("F64", (rows, columns)),
        "total": ("F64", (rows, columns)),
        "constant": ("F64", (1,)),
    }


def _of_sums(name: str, fold: str) -> dict[Sides, Rule]:
    """A fold that keeps sums, by the sides of the stored matrix that they are kept for."""
    return {
        sides: Rule(
            name, fold, Cut.MATRICES, True, partial(costs.sums_bytes, sides), partial(costs.sums_effort, sides),
            float64=True, state=partial(_sums, sides),
        )
        for sides in (Sides(True, True), Sides(True, False), Sides(False, True))
    }  # fmt: skip


DOP_ALL = _of_sums("dop all", "dopkit.methods.all_tasks:DopAll")
WUDI = _of_sums("wudi", "dopkit.methods.all_tasks:Wudi")
