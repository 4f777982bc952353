"""The rules of the methods that mergekit users bring, and of those that merge a spectrum: see ``rules``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from dopkit.methods import costs
from dopkit.methods.costs import copies, elementwise_effort
from dopkit.methods.dop_terms import Sides
from dopkit.methods.rule import Cut, Rule, Shape
from dopkit.methods.rules import votes

State = Callable[[Shape], dict[str, tuple[str, Shape]]]


def _tensors(*names: str) -> State:
    """Tensors of the shape of the part."""
    return lambda shape: {name: ("F32", shape) for name in names}


# Sums of the models, or of their task vectors as they are.
LINEAR = Rule(
    "weighted mean", "dopkit.methods.linear:WeightedMean", Cut.BLOCKS, False, copies(4), elementwise_effort,
    state=_tensors("first", "total"), resumes=True,
)  # fmt: skip
LINEAR_SUM = Rule("weighted sum", "dopkit.methods.linear:WeightedSum", Cut.BLOCKS, False, copies(3), elementwise_effort)
FISHER = Rule(
    "fisher", "dopkit.methods.fisher:Fisher", Cut.BLOCKS, False, copies(4), elementwise_effort,
    state=_tensors("merged", "total"), companions=("fisher",),
)  # fmt: skip
TASK_MEAN = Rule(
    "mean task vector", "dopkit.methods.task_arithmetic:TaskMean", Cut.BLOCKS, True, copies(4), elementwise_effort,
    state=_tensors("total"), resumes=True,
)  # fmt: skip


# Trimmed task vectors: a sum, a weighted mean, an election.
def _trimmed(name: str, fold: str, cut: Cut, effort: Callable[[Shape], float], extra: int) -> dict[str, Rule]:
    """The three rules of one way to trim, which has ``extra`` copies of the part in hand, and room for blocks."""

    def rule(kind: str, suffix: str, number: int) -> Rule:
        def working(shape: Shape) -> int:
            return copies(number + extra)(shape) + 30_000_000

        return Rule(f"{name} {kind}", f"dopkit.methods.sparse:{fold}{suffix}", cut, True, working, effort)

    return {
        "sum": rule("sum", "Linear" if fold != "Breadcrumbs" else "", 3),
        "mean": replace(rule("mean", "Mean", 4), state=_tensors("total"), resumes=True),
        "election": replace(rule("election", "Ties" if fold != "Della" else "", 9), state=votes),
    }


DARE = _trimmed("dare", "Dare", Cut.BLOCKS, costs.drawing_effort, 2)
DELLA = _trimmed("della", "Della", Cut.BLOCKS, costs.ranking_effort, 7)  # ranks take twice the room of the entries
DELLA_VECTOR = {kind: replace(rule, cut=Cut.WHOLE) for kind, rule in DELLA.items()}
BREADCRUMBS = _trimmed("breadcrumbs", "Breadcrumbs", Cut.WHOLE, costs.choosing_effort, 2)

# Interpolations.
MULTISLERP = Rule(
    "multislerp", "dopkit.methods.sphere:Multislerp", Cut.WHOLE, True, costs.whole_bytes(5), costs.angle_effort,
    float64=True, state=lambda shape: {"directions": ("F32", shape), "length": ("F64", (1,))}, resumes=True,
)  # fmt: skip


def _stock(shape: Shape, rows: int) -> dict[str, tuple[str, Shape]]:
    return {"total": ("F32", shape), "units": ("F32", shape), "moved": ("F32", (rows, 1))}


MODEL_STOCK = Rule(
    "model stock", "dopkit.methods.model_stock:ModelStock", Cut.WHOLE, True, costs.whole_bytes(7), costs.angle_effort,
    float64=True, state=lambda shape: _stock(shape, 1),
)  # fmt: skip
MODEL_STOCK_ROWS = replace(
    MODEL_STOCK, name="model stock rows", cut=Cut.BLOCKS, state=lambda shape: _stock(shape, shape[0])
)


def _joint(name: str, code: str, number: int, effort: Callable[[Shape], float], base: bool = True) -> Rule:
    """A joint merge of whole tensors, with ``number`` copies in hand beside the models: the base and its own."""
    return Rule(
        name, f"dopkit.methods.{code}", Cut.WHOLE, base, costs.whole_bytes(number), effort, float64=True,
        state=lambda shape: {}, joint=True,
    )  # fmt: skip


def _by_entry(name: str, code: str, number: int, base: bool) -> Rule:
    """A joint merge of one entry after another."""
    rule = _joint(name, code, 0, elementwise_effort, base)
    return replace(rule, cut=Cut.BLOCKS, working_bytes=copies(number), float64=False)


PASSTHROUGH = _by_entry("passthrough", "linear:Passthrough", 2, False)
SLERP = _joint("slerp", "sphere:Slerp", 6, costs.angle_effort)
NUSLERP = _joint("nuslerp", "sphere:Nuslerp", 8, costs.angle_effort)
KARCHER = _joint("karcher", "sphere:Karcher", 8, costs.search_effort, False)

# Selections.
NEARSWAP = _by_entry("nearswap", "selection:Nearswap", 5, True)
ARCEE_FUSION = _joint("arcee fusion", "selection:ArceeFusion", 10, costs.diverging_effort)
SCE = _joint("sce", "selection:Sce", 12, costs.choosing_effort)
RAM = Rule(
    "ram", "dopkit.methods.selection:Ram", Cut.BLOCKS, True, copies(7), elementwise_effort,
    state=_tensors("total", "models"),
)  # fmt: skip
RAM_PLUS = _joint("ram plus", "selection:RamPlus", 12, costs.choosing_effort)

# Spectra.
ISO_C = Rule(
    "iso c", "dopkit.methods.spectral:IsoC", Cut.MATRICES, True, costs.triplets_bytes, costs.triplets_effort,
    float64=True, state=_tensors("total"),
)  # fmt: skip
TSV = Rule(
    "tsv", "dopkit.methods.spectral:Tsv", Cut.MATRICES, True, costs.joined_bytes, costs.joined_effort, float64=True,
    state=lambda shape: {}, joint=True,
)  # fmt: skip
ISO_CTS = replace(TSV, name="iso cts", fold="dopkit.methods.spectral:IsoCts")


def _covariances(sides: Sides, shape: Shape) -> dict[str, tuple[str, Shape]]:
    outputs, inputs = shape[-2:] if sides.columns else shape[-2:][::-1]
    sums = {"covariance": (inputs, inputs), "product": (outputs, inputs), "total": (outputs, inputs)}
    parts = {**sums, **{f"even_{name}": one for name, one in sums.items()}, "numbers": (5,)}
    return {name: ("F64", one) for name, one in parts.items()}


ACE = {
    sides: Rule(
        "ace", "dopkit.methods.ace:Ace", Cut.MATRICES, True, partial(costs.covariance_bytes, sides),
        partial(costs.covariance_effort, sides), float64=True, state=partial(_covariances, sides),
    )
    for sides in (Sides(True, False), Sides(False, True))
}  # fmt: skip
