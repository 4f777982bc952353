"""Laws that hold for every fold that dopkit brings, on one tensor. The docstring is the law."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods.folding import beside, distance, every_rule, family, fold

from dopkit import methods
from dopkit.errors import MergeError
from dopkit.methods import BASE, EQUAL, Cut, Rule
from dopkit.methods.fold import Context
from dopkit.methods.parameters import Parameters
from dopkit.roles import Role

# Every rule of every method, with one setting at least that leads to it: method, parameters, role.
CASES: dict[str, tuple[str, dict[str, Any], Role]] = {
    "mean": ("average", {}, Role.LINEAR),
    "half": ("dop", {"other": "half"}, Role.NORM),
    "task_arithmetic": ("task_arithmetic", {"lambda": 0.3, "weight": 0.7}, Role.LINEAR),
    "ties": ("ties", {"density": 0.3, "weight": 0.7, "lambda": 0.9}, Role.LINEAR),
    "ties-sum": ("ties", {"normalize": False}, Role.EMBEDDING),
    "magmax": ("magmax", {}, Role.LINEAR),
    "magmax-1": ("magmax", {"lambda": 1.0}, Role.LINEAR),
    "dop-exact": ("dop", {}, Role.LINEAR),
    "dop-adam": ("dop", {"solver": "adam", "num_steps": 3}, Role.LINEAR),
    "dop-all": ("dop", {"history": "all"}, Role.LINEAR),
    "dop-all-u": ("dop", {"history": "all", "svd_proj_space": "u", "svd_epsilon": 0.9}, Role.CONV1D),
    "dop-all-v": ("dop", {"history": "all", "svd_proj_space": "v", "svd_epsilon": 1.0}, Role.LINEAR),
    "opcm": ("opcm", {}, Role.LINEAR),
    "opcm-other": ("opcm", {}, Role.NORM),
    "opcm-below": ("opcm", {"alpha": 1.0, "rank_rule": "below"}, Role.HEAD),
    "wudi": ("wudi", {}, Role.LINEAR),
    "wudi-conv1d": ("wudi", {}, Role.CONV1D),
    "linear": ("linear", {"weight": 0.7}, Role.NORM),
    "linear-sum": ("linear", {"weight": 0.7, "normalize": False}, Role.LINEAR),
    "fisher": ("fisher", {"weight": 0.7}, Role.LINEAR),
    "task-mean": ("task_arithmetic", {"weight": 0.7, "normalize": True}, Role.LINEAR),
    "dare": ("dare_linear", {"density": 0.6}, Role.LINEAR),
    "dare-mean": ("dare_linear", {"density": 0.6, "normalize": True, "rescale": False}, Role.LINEAR),
    "dare-ties": ("dare_ties", {"density": 0.6, "weight": 0.7}, Role.LINEAR),
    "della": ("della", {"density": 0.6, "weight": 0.7}, Role.LINEAR),
    "della-sum": ("della_linear", {"density": 0.6}, Role.EMBEDDING),
    "della-mean": ("della_linear", {"density": 0.6, "normalize": True, "rescale": False}, Role.LINEAR),
    "breadcrumbs": ("breadcrumbs", {"density": 0.6, "gamma": 0.2}, Role.LINEAR),
    "breadcrumbs-mean": ("breadcrumbs", {"density": 0.6, "normalize": True, "rescale": True}, Role.LINEAR),
    "breadcrumbs-ties": ("breadcrumbs_ties", {"density": 0.6, "gamma": 0.2, "rescale": True}, Role.LINEAR),
    "ram": ("ram", {"epsilon": 0.01}, Role.LINEAR),
    "multislerp": ("multislerp", {"weight": 0.7}, Role.LINEAR),
    "model-stock": ("model_stock", {}, Role.LINEAR),
    "model-stock-rows": ("model_stock", {"filter_wise": True}, Role.LINEAR),
    "ace": ("ace", {}, Role.LINEAR),
    "ace-conv1d": ("ace", {"gamma": 0.0}, Role.CONV1D),
    "iso-c": ("iso_c", {"lambda": 1.3}, Role.LINEAR),
    "nullspace": ("nullspace", {}, Role.LINEAR),
    "nullspace-conv1d": ("nullspace", {"svd_epsilon": 1.0}, Role.CONV1D),
    "nullspace-experts": ("nullspace", {}, Role.EXPERTS_CONV1D),
}
SHAPES = [(7, 5), (5, 7), (4, 13)]


class Case:
    def __init__(self, method: str, parameters: dict[str, Any], role: Role) -> None:
        self.method = methods.find(method)
        self.parameters: Parameters = self.method.parameters.model_validate(parameters)
        self.role = role

    def context(self, step: int, model: torch.Tensor) -> Context:
        return Context(self.parameters, self.role, step, companions=beside(self.rule(), model))

    def rule(self, shape: tuple[int, ...] = (7, 5)) -> Rule:
        return self.method.rule_for(self.parameters, "x.weight", self.role, shape)

    def merged(self, base: torch.Tensor, models: list[torch.Tensor], **how: Any) -> torch.Tensor:
        return fold(self.rule(tuple(base.shape)), self.parameters, base, models, self.role, **how)[0]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*CASES[request.param])


def test_no_rule_is_left_out() -> None:
    """Every fold of every built-in method is among the cases."""
    tried = {Case(*case).rule().fold for case in CASES.values()}
    assert {rule.fold for rule in every_rule() if not rule.joint} - {None} == tried


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("split", [1, 2, 3])
def test_a_split_run_gives_the_bits_of_a_whole_one(case: Case, shape: tuple[int, ...], split: int) -> None:
    """A, B, C and D in one go; or some of them, the state packed and unpacked, and then the rest."""
    base, models = family(*shape, count=4)
    assert torch.equal(case.merged(base, models, split=split), case.merged(base, models))


def test_looking_disturbs_nothing(case: Case) -> None:
    """``finish`` after every step leaves the result as it is without, and gives what a run that ends there gives."""
    base, models = family(6, 9, count=4)
    assert torch.equal(case.merged(base, models, look=True), case.merged(base, models))


def test_what_is_packed_is_what_the_rule_declares(case: Case) -> None:
    """Names, shapes and dtypes: F32 stands for the precision of the tensors."""
    for dtype, own in ((torch.float32, "F32"), (torch.float64, "F64")):
        base, models = family(5, 8, dtype=dtype)
        rule, folding = case.rule((5, 8)), case.rule((5, 8)).load()
        packed = folding.pack(folding.start(base, models[0].clone(), case.context(1, models[0])))
        names = {torch.float32: "F32", torch.float64: "F64"}
        declared = {name: (own if kind == "F32" else kind, shape) for name, (kind, shape) in rule.state((5, 8)).items()}
        assert {name: (names[tensor.dtype], tuple(tensor.shape)) for name, tensor in packed.items()} == declared
        assert all(tensor.is_contiguous() for tensor in packed.values())


def test_the_state_does_not_grow(case: Case) -> None:
    """After twelve models the state is as large as after three."""
    sizes = []
    for count in (3, 12):
        base, models = family(5, 8, count=count)
        folding = case.rule((5, 8)).load()
        state = folding.start(base, models[0], case.context(1, models[0]))
        for step, model in enumerate(models[1:], start=2):
            state = folding.step(state, model, case.context(step, model))
        sizes.append({name: (tensor.shape, tensor.dtype) for name, tensor in folding.pack(state).items()})
    assert sizes[0] == sizes[1]


def test_frozen_layers_and_equal_models_are_finite(case: Case) -> None:
    """Models equal to the base, to each other, or of rank 1, in any place."""
    base, (one, two, _) = family(6, 8)
    thin = base + 0.01 * torch.outer(base[:, 0], base[0])
    for models in ([base, base], [base, one, two], [one, base, two], [one, one, two], [one, two, two], [thin, base],
                   [thin, thin, thin], [one, thin]):  # fmt: skip
        assert bool(torch.isfinite(case.merged(base, models)).all())


@pytest.mark.parametrize("name", [name for name in CASES if name != "linear-sum"])
def test_all_frozen_is_the_base(name: str) -> None:
    """Models that never moved give the base, bit for bit."""
    case = Case(*CASES[name])
    base, _ = family(6, 8)
    assert torch.equal(case.merged(base, [base, base, base]), base)


def test_an_empty_tensor_passes(case: Case) -> None:
    for shape in ((0, 4), (4, 0)):
        base = torch.zeros(shape)
        assert case.merged(base, [base, base]).shape == shape


def test_float64_models_keep_their_precision(case: Case) -> None:
    """The same merge in float64 is the same merge, and not by way of float32."""
    base, models = family(7, 5, dtype=torch.float64)
    exact = case.merged(base, models)
    base32, models32 = base.float(), [model.float() for model in models]
    rounded = case.merged(base32, models32)
    assert exact.dtype == torch.float64
    again = case.merged(base32.double(), [model.double() for model in models32])
    assert distance(rounded, again, base) < 2e-5  # one unit in the last place is 6e-6 of these task vectors
    assert not torch.equal(exact, exact.float().double())


ONE_IS_ITSELF = ["mean", "half", "linear", "fisher", "dop-exact", "dop-adam", "dop-all", "dop-all-u", "dop-all-v",
                 "opcm", "opcm-other", "opcm-below", "wudi", "wudi-conv1d", "nullspace",
                 "nullspace-conv1d"]  # fmt: skip


@pytest.mark.parametrize("name", ONE_IS_ITSELF)
def test_one_model_is_that_model(name: str) -> None:
    """One model in gives that model out, bit for bit, where nothing is trimmed or multiplied."""
    case = Case(*CASES[name])
    for shape in SHAPES:
        base, (model,) = family(*shape, count=1)
        assert torch.equal(case.merged(base, [model]), model)


COPIES = ["mean", "half", "linear", "fisher", "magmax-1", "dop-exact", "dop-adam", "dop-all", "dop-all-u", "dop-all-v",
          "wudi", "wudi-conv1d"]  # fmt: skip


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_one_model_are_that_model(name: str) -> None:
    """n copies of one model give that model, bit for bit, where models are not added up."""
    case = Case(*CASES[name])
    for shape in SHAPES:
        base, (model,) = family(*shape, count=1)
        assert torch.equal(case.merged(base, [model] * 5), model)


@pytest.mark.parametrize("name", [name for name in CASES if Case(*CASES[name]).rule().cut is Cut.BLOCKS])
@pytest.mark.parametrize("cut", [1, 3, 8, 17, 64, 101])
def test_blocks_give_the_bytes_of_the_whole(name: str, cut: int) -> None:
    """What may be cut into runs of rows gives the same bits wherever it is cut."""
    case = Case(*CASES[name])
    base, models = family(331 if cut > 1 else 40, 3, count=4)
    parts = zip(base.split(cut), *(model.split(cut) for model in models), strict=True)
    merged = [case.merged(part, list(rest), offset=3 * cut * index) for index, (part, *rest) in enumerate(parts)]
    assert torch.equal(torch.cat(merged), case.merged(base, models))


ANY_ORDER = [
    *(name for name in CASES if not Case(*CASES[name]).method.ordered),
    "magmax", "dop-all", "dop-all-u", "dop-all-v",
]  # fmt: skip


@pytest.mark.parametrize("name", ANY_ORDER)
@pytest.mark.parametrize("shape", [*SHAPES, (12, 40), (40, 12)])
def test_order_does_not_matter(name: str, shape: tuple[int, ...]) -> None:
    """The same models in any order: the same result within 1e-5 of the task vector, frozen and equal ones included."""
    case = Case(*CASES[name])
    base, models = family(*shape, count=4, size=0.1)
    models += [base, models[0]]
    want = case.merged(base, models)
    for order in ([5, 4, 3, 2, 1, 0], [4, 0, 5, 1, 2, 3], [1, 3, 5, 0, 2, 4]):
        names = [str(index + 1) for index in order]
        assert distance(case.merged(base, [models[index] for index in order], names=names), want, base) < 1e-5


def test_a_value_that_is_not_finite_is_told(case: Case) -> None:
    """NaN and infinity raise MergeError, or show in the result: they never vanish."""
    for bad in (float("nan"), float("inf"), -float("inf")):
        for place in (0, 1, 2):
            base, models = family(5, 6)
            models[place][2, 3] = bad
            try:
                assert not bool(torch.isfinite(case.merged(base, models)).all())
            except MergeError as error:
                assert "not finite" in str(error)


def test_the_rules_that_copy_have_no_fold() -> None:
    assert (BASE.fold, EQUAL.fold) == (None, None)


@pytest.mark.parametrize("method", ["dop", "dop all", "wudi", "nullspace", "opcm"])
@pytest.mark.parametrize("role", [Role.CONV1D, Role.EXPERTS_CONV1D])
def test_a_matrix_stored_transposed_merges_to_the_transpose(method: str, role: Role) -> None:
    """(in, out) gives the transpose of (out, in): the sides of a matrix are known by its role, not by their place."""
    one_side = {"svd_proj_space": "v"} if method.startswith("dop") else {}
    given = {"history": "all", **one_side} if method == "dop all" else one_side
    base, models = family(7, 5, count=3)
    upright = Case(method.split()[0], given, Role.LINEAR).merged(base, models)
    lying = Case(method.split()[0], given, role).merged(
        base.mT.contiguous(), [model.mT.contiguous() for model in models]
    )
    assert distance(lying.mT, upright, base) < 1e-5
