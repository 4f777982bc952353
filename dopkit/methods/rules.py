"""The rules that methods give to tensors: where the code is and what it needs."""

from __future__ import annotations

from dopkit.methods.costs import adam_bytes, adam_effort, copies, elementwise_effort, exact_bytes, exact_effort
from dopkit.methods.rule import Cut, Rule

MEAN = Rule("mean", "dopkit.methods.average:Mean", Cut.BLOCKS, False, copies(3), elementwise_effort)
HALF = Rule("half", "dopkit.methods.average:Half", Cut.BLOCKS, False, copies(2), elementwise_effort)
DOP_EXACT = Rule("dop exact", "dopkit.methods.dop:Dop", Cut.MATRICES, True, exact_bytes, exact_effort, float64=True)
DOP_ADAM = Rule("dop adam", "dopkit.methods.dop:Dop", Cut.MATRICES, True, adam_bytes, adam_effort)

# Not a method's doing: what the recipe or the tensors themselves settle.
BASE = Rule(
    "base", None, Cut.BLOCKS, True, copies(1), elementwise_effort
)  # taken from the base, because the recipe says so
EQUAL = Rule(
    "equal", None, Cut.BLOCKS, True, copies(1), elementwise_effort
)  # not arithmetic (integers): must be equal in all models
