"""DOP against the reference's outputs, dense solves and its own objective.

Run: python -m pytest tests/methods/test_dop.py
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dopkit.errors import MergeError
from dopkit.linalg import spectra
from dopkit.methods.average import Half
from dopkit.methods.dop import Dop
from dopkit.methods.fold import Context
from dopkit.methods.parameters import AverageParameters, DopParameters
from dopkit.roles import Role

GOLDEN = Path(__file__).parents[1] / "golden" / "clip-tiny"
CASES = json.loads((GOLDEN / "cases.json").read_text())
LINEAR = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@cache
def golden(folder):
    return load_file(GOLDEN / folder / "model.safetensors")


def is_linear_weight(name):
    *_, module, kind = name.split(".")
    return module in LINEAR and kind == "weight"


def read_by_the_solver(case):
    """The parameters of a case that its solver reads."""
    names = ["lr", "num_steps", "mgda", "alpha", "svd_epsilon", "svd_proj_space"]
    if case["mgda"]:
        names += ["ema", "ema_beta"] if case["ema"] else ["ema"]
    return {name: case[name] for name in names}


def folded(base, models, role=Role.LINEAR, **given):
    """The merge of ``models`` in order and the records of its steps; leaves all its arguments as they are."""
    parameters = DopParameters(**given)
    records = []
    fold, kept = Dop(), base.clone()
    state = fold.start(base, models[0].clone(), Context(parameters, role, 1))
    for step, model in enumerate(models[1:], start=2):
        state = fold.step(state, model.clone(), Context(parameters, role, step, records.append))
    result = fold.finish(state, Context(parameters, role, len(models)))
    assert torch.equal(base, kept), "the base was written to"
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    return result, records


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def three(rows, columns, size=0.05, ranks=(None, None), seed=0):
    """A base and two models, float32, with task vectors of the given relative size and ranks."""
    base = normal(rows, columns, seed=seed)
    models = []
    for number, rank in enumerate(ranks, start=1):
        tau = normal(rows, columns, seed=seed + number)
        if rank is not None:
            tau = normal(rows, rank, seed=seed + number) @ normal(rank, columns, seed=seed + number + 9)
        models.append((base + size * base.norm() * tau / tau.norm().clamp(min=1)).float())
    return base.float(), *models


class Objective:
    """The published losses in float64, written with full singular value decompositions."""

    def __init__(self, base, models, alpha, epsilon=0.99999, space="uv", rule="at-least"):
        self.targets = [model.double() for model in models]
        self.weights = (alpha, 1 - alpha)
        self.space = space
        self.projections = []
        for target in self.targets:
            u, s, vh = torch.linalg.svd(target - base.double(), full_matrices=False)
            s = torch.where(s > 1e-12 * s[0], s, 0)
            share = s.cumsum(0) / s.sum() if s[0] > 0 else torch.ones(0)
            rank = int((share < epsilon - 1e-14).sum()) + (rule == "at-least" and share.numel() > 0)
            self.projections.append((u[:, :rank], s[:rank], vh[:rank].mT))

    def losses(self, point):
        found = []
        for target, (u, s, v) in zip(self.targets, self.projections, strict=True):
            difference = point.double() - target
            on_rows = (s[:, None] * (u.mT @ difference)).square().sum()
            on_columns = ((difference @ v) * s).square().sum()
            found.append(on_rows * ("u" in self.space) + on_columns * ("v" in self.space))
        return found

    def __call__(self, point):
        return sum(weight * loss for weight, loss in zip(self.weights, self.losses(point), strict=True))

    def gradient(self, point):
        point = point.double().clone().requires_grad_()
        self(point).backward()
        return point.grad

    def dense_minimum(self):
        """The minimiser nearest to the average, from the normal equations of the whole matrix written out."""
        average = (self.targets[0] + self.targets[1]) / 2
        hessian = torch.autograd.functional.hessian(self, average).reshape(average.numel(), average.numel())
        step = torch.linalg.pinv(hessian, rtol=1e-10) @ self.gradient(average).reshape(-1)
        return average - step.reshape(average.shape)


# Parity with the reference implementation


@pytest.mark.parametrize("name", CASES["dop"])
def test_adam_meets_the_reference_on_every_linear_weight(name):
    base, want = golden("base"), golden(name)
    models = [golden(expert) for expert in CASES["order"]]
    given = read_by_the_solver(CASES["dop"][name])
    weights = [tensor for tensor in base if is_linear_weight(tensor)]
    assert len(weights) == 12
    for tensor in weights:
        got, _ = folded(base[tensor], [model[tensor] for model in models], solver="adam", rank_rule="below", **given)
        error = float((got - want[tensor]).norm() / (want[tensor] - base[tensor]).norm())
        assert error < 1e-5, f"{tensor}: {error:.1e} of the task vector"


@pytest.mark.parametrize("name", CASES["dop"])
def test_half_meets_the_reference_on_everything_else(name):
    models, want = [golden(expert) for expert in CASES["order"]], golden(name)
    others = [tensor for tensor in want if not is_linear_weight(tensor) and "class_embedding" not in tensor]
    assert len(others) == 39 - 12 - 1
    for tensor in others:
        fold, state = Half(), models[0][tensor].clone()
        for step, model in enumerate(models[1:], start=2):
            context = Context(AverageParameters(), Role.NORM, step)
            state = fold.step(state, model[tensor].clone(), context)
        torch.testing.assert_close(state, want[tensor], rtol=2e-7, atol=1e-9)


# The closed form


@pytest.mark.parametrize("space", ["uv", "u", "v"])
def test_diagonal_matrices_by_hand(space):
    """Base 0, Wm = diag(2, 1), Wt = diag(1, 3), alpha 1/2, everything kept: the entries come apart.

    Entry (0, 0): weights tau^2 = 4 and 1 on targets 2 and 1, so (4 * 2 + 1) / 5 = 1.8; entry (1, 1):
    weights 1 and 9 on targets 1 and 3, so (1 + 27) / 10 = 2.8. One side or both: the same. Off the diagonal
    all targets are 0.
    """
    models = [torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([1.0, 3.0]))]
    got, records = folded(torch.zeros(2, 2), models, alpha=0.5, svd_epsilon=1.0, svd_proj_space=space)
    torch.testing.assert_close(got, torch.diag(torch.tensor([1.8, 2.8])))
    sides = len(space)
    # At the average (1.5, 2): L_0 = 4 * 0.25 + 1 * 1 = 2, L_1 = 1 * 0.25 + 9 * 1 = 9.25, for each side.
    # At the end: L_0 = 4 * 0.04 + 1 * 3.24 = 3.4, L_1 = 1 * 0.64 + 9 * 0.04 = 1.
    (record,) = records
    assert record == pytest.approx(
        {
            "step": 2,
            "stability_before": 2 * sides,
            "plasticity_before": 9.25 * sides,
            "objective_before": 5.625 * sides,
            "stability_after": 3.4 * sides,
            "plasticity_after": 1.0 * sides,
            "objective_after": 2.2 * sides,
            "rank_merged": 2,
            "rank_incoming": 2,
            "weight": 0.5,
        },
        rel=1e-6,
    )
    assert all(type(value) in (int, float) for value in record.values())


def test_disjoint_tasks_in_four_dimensions_by_hand():
    """tau_0 lives in the first entry, tau_1 in the last: at alpha 3/4 each keeps its own, and neither loses.

    Entry (0, 0): only L_0 speaks (weight 4 on both sides), target 2. Entry (3, 3): only L_1, target 1.
    Entries (0, 3) and (3, 0): both speak, and both want 0. All others are flat and average 0 and 0.
    """
    base = torch.arange(16.0).reshape(4, 4)
    merged, incoming, want = base.clone(), base.clone(), base.clone()
    merged[0, 0] += 2
    incoming[3, 3] += 1
    want[0, 0] += 2
    want[3, 3] += 1
    got, records = folded(base, [merged, incoming], alpha=0.75)
    torch.testing.assert_close(got, want)
    assert records[0]["objective_before"] == pytest.approx(0.75 * 8 + 0.25 * 0.5)
    assert records[0]["objective_after"] == pytest.approx(0, abs=1e-12)


SHAPES = [(4, 5), (6, 4), (3, 7), (8, 3), (5, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("space", ["uv", "u", "v"])
@pytest.mark.parametrize("epsilon", [1.0, 0.99999, 0.7])
def test_exact_is_the_dense_solution(shape, space, epsilon):
    """Also in the flat directions: of all minima the one nearest to the average."""
    base, *models = three(*shape, size=0.5)
    objective = Objective(base, models, 0.3, epsilon, space)
    got, records = folded(base, models, alpha=0.3, svd_epsilon=epsilon, svd_proj_space=space)
    torch.testing.assert_close(got.double(), objective.dense_minimum(), rtol=2e-6, atol=2e-6)
    average = (models[0].double() + models[1].double()) / 2
    start = float(objective(average))
    assert records[0]["objective_before"] == pytest.approx(start, rel=1e-9)
    assert records[0]["objective_after"] == pytest.approx(float(objective(got)), rel=1e-5, abs=1e-9 * start)
    losses = [float(loss) for loss in objective.losses(average)]
    assert [records[0]["stability_before"], records[0]["plasticity_before"]] == pytest.approx(losses, rel=1e-9)
    ranks = [projection[1].numel() for projection in objective.projections]
    assert [records[0]["rank_merged"], records[0]["rank_incoming"]] == ranks


@pytest.mark.parametrize("shape", [(24, 24), (24, 40), (40, 24), (16, 70), (70, 16)])
@pytest.mark.parametrize("ranks", [(None, None), (1, 1), (None, 1), (3, 0), (0, 3)])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_exact_is_stationary(shape, ranks, alpha):
    base, *models = three(*shape, ranks=ranks)
    objective = Objective(base, models, alpha)
    got, _ = folded(base, models, alpha=alpha)
    average = (models[0].double() + models[1].double()) / 2
    # In units of the gradient at the average of models this far apart; float32 rounds the result.
    scale = sum(float((model.double() - base.double()).norm()) for model in models) ** 3
    assert float(objective.gradient(got).norm()) < 3e-6 * scale
    assert float(objective(got)) <= float(objective(average)) * (1 + 1e-12)


MATRICES = ["square", "wide", "rank one", "tall", "very wide", "zero incoming", "zero merged", "golden"]


def matrices(kind):
    if kind == "golden":
        name = "vision_model.encoder.layers.1.mlp.fc2.weight"
        return [golden(folder)[name] for folder in ("base", "expert0", "expert1")]
    shape = {"wide": (20, 32), "tall": (32, 20), "very wide": (12, 64)}.get(kind, (24, 24))
    ranks = {"rank one": (1, 1), "zero incoming": (None, 0), "zero merged": (0, None)}.get(kind, (None, None))
    return three(*shape, ranks=ranks)


@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("alpha", [0.2, 0.8])
def test_exact_never_ends_above_adam(kind, alpha):
    base, *models = matrices(kind)
    exact, _ = folded(base, models, alpha=alpha)
    adam, _ = folded(base, models, solver="adam", mgda=False, alpha=alpha, lr=1e-3)
    objective = Objective(base, models, alpha)
    start = float(objective((models[0].double() + models[1].double()) / 2))
    assert float(objective(exact)) <= float(objective(adam)) + 1e-11 * start
    assert float(objective(adam)) < start


@pytest.mark.parametrize("solver", ["exact", "adam"])
def test_golden_matrices_reach_a_lower_objective_in_closed_form(solver):
    base, *models = (golden(folder) for folder in ("base", "expert0", "expert1"))
    for name in filter(is_linear_weight, base):
        given = {} if solver == "exact" else {"mgda": False, "num_steps": 50}
        _, (record,) = folded(base[name], [model[name] for model in models], solver=solver, **given)
        assert record["objective_after"] < 0.7 * record["objective_before"]


# Symmetries


@pytest.mark.parametrize("solver", ["exact", "adam"])
@pytest.mark.parametrize("shape", [(9, 12), (5, 21)])
def test_transposed_models_give_the_transposed_merge(solver, shape):
    matrices = three(*shape)
    turned = [matrix.mT.contiguous() for matrix in matrices]
    got, _ = folded(matrices[0], matrices[1:], solver=solver)
    other, _ = folded(turned[0], turned[1:], solver=solver)
    torch.testing.assert_close(other.mT, got, rtol=0, atol=1e-6)
    for one, two in (("u", "v"), ("v", "u")):
        got, _ = folded(matrices[0], matrices[1:], solver=solver, svd_proj_space=one)
        other, _ = folded(turned[0], turned[1:], solver=solver, svd_proj_space=two)
        torch.testing.assert_close(other.mT, got, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", ["exact", "adam"])
@pytest.mark.parametrize("space", ["uv", "u", "v"])
@pytest.mark.parametrize("shape", [(8, 12), (6, 20), (20, 6)])
def test_a_conv1d_is_the_linear_layer_stored_transposed(solver, space, shape):
    """u stays the output side: (in, out) with CONV1D gives the transpose of (out, in) with LINEAR."""
    matrices = three(*shape)
    stored = [matrix.mT.contiguous() for matrix in matrices]
    linear, _ = folded(matrices[0], matrices[1:], solver=solver, svd_proj_space=space)
    conv1d, _ = folded(stored[0], stored[1:], role=Role.CONV1D, solver=solver, svd_proj_space=space)
    assert conv1d.shape == stored[0].shape
    torch.testing.assert_close(conv1d.mT, linear, rtol=0, atol=1e-6)
    if space != "uv":
        other, _ = folded(stored[0], stored[1:], solver=solver, svd_proj_space=space)
        assert float((other.mT - linear).norm() / (linear - matrices[0]).norm()) > 1e-2


@pytest.mark.parametrize("shape", [(9, 12), (5, 21), (21, 5)])
def test_exact_follows_rotations(shape):
    matrices = three(*shape)
    left = torch.linalg.qr(normal(shape[0], shape[0], seed=7)).Q
    right = torch.linalg.qr(normal(shape[1], shape[1], seed=8)).Q
    turned = [(left @ matrix.double() @ right).float() for matrix in matrices]
    got, _ = folded(matrices[0], matrices[1:])
    other, _ = folded(turned[0], turned[1:])
    torch.testing.assert_close(other.double(), left @ got.double() @ right, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", ["exact", "adam"])
def test_both_solvers_follow_permutations(solver):
    matrices = three(9, 21)
    rows, columns = torch.randperm(9, generator=torch.Generator().manual_seed(1)), torch.arange(21).roll(4)
    turned = [matrix[rows][:, columns].contiguous() for matrix in matrices]
    got, _ = folded(matrices[0], matrices[1:], solver=solver)
    other, _ = folded(turned[0], turned[1:], solver=solver)
    torch.testing.assert_close(other, got[rows][:, columns], rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [1e-12, 1e-5, 1.0, 1e12])
@pytest.mark.parametrize("shape", [(10, 12), (5, 21)])
def test_exact_is_scale_free(size, shape):
    """On a zero base, models of any size give the same result in that size: nothing under- or overflows."""
    models = [normal(*shape, seed=seed).float() for seed in (1, 2)]
    base = torch.zeros(shape)
    want, _ = folded(base, models)
    got, _ = folded(base, [model * size for model in models])
    assert float((got.double() / size - want.double()).norm() / want.double().norm()) < 1e-6


def test_adam_moves_little_when_task_vectors_vanish_under_its_epsilon():
    """Known limit of the published procedure: gradients go as the third power of the task vector."""
    base = torch.zeros(16, 16)
    tiny = [normal(16, 16, seed=seed).float() * 1e-5 for seed in (1, 2)]
    got, _ = folded(base, tiny, solver="adam")
    average = (tiny[0] + tiny[1]) / 2
    assert float((got - average).norm() / average.norm()) < 0.05
    exact, _ = folded(base, tiny)
    assert float((exact - average).norm() / average.norm()) > 0.2


# Steps


@pytest.mark.parametrize("solver", ["exact", "adam"])
def test_every_step_lowers_its_own_objective(solver):
    base, first, second = three(20, 30)
    third = three(20, 30, seed=50)[1] - three(20, 30, seed=50)[0] + base
    _, records = folded(base, [first, second, third], solver=solver, alpha="by-count")
    assert [record["step"] for record in records] == [2, 3]
    for record in records:
        assert record["objective_after"] < record["objective_before"]
    if solver == "exact":
        assert [record["weight"] for record in records] == pytest.approx([1 / 2, 2 / 3])
    # Alpha weights the objective as given, whatever the weight has become.
    for record, alpha in zip(records, (1 / 2, 2 / 3), strict=True):
        for time in ("before", "after"):
            total = alpha * record[f"stability_{time}"] + (1 - alpha) * record[f"plasticity_{time}"]
            assert record[f"objective_{time}"] == pytest.approx(total, rel=1e-12)


def test_the_weight_stays_where_the_published_settings_keep_it():
    """After 200 steps of ema_beta 0.999, 81.9% of the weight is still the alpha it started from."""
    base, *models = three(20, 30)
    _, (record,) = folded(base, models, solver="adam")
    assert 0.8 * 0.999**200 <= record["weight"] <= 0.8 * 0.999**200 + 1 - 0.999**200
    _, (fixed,) = folded(base, models, solver="adam", mgda=False)
    assert fixed["weight"] == 0.8


@pytest.mark.parametrize("space", ["uv", "u", "v"])
@pytest.mark.parametrize("shape", [(10, 12), (5, 40)])
@pytest.mark.parametrize("ranks", [(None, None), (2, 1)])
def test_adam_with_fixed_weights_follows_automatic_differentiation(space, shape, ranks):
    base, *models = three(*shape, ranks=ranks)
    objective = Objective(base, models, 0.6, space=space)
    point = ((models[0].double() + models[1].double()) / 2).requires_grad_()
    optimiser = torch.optim.Adam([point], lr=1e-4)
    for _ in range(30):
        optimiser.zero_grad()
        objective(point).backward()
        optimiser.step()
    given = {"solver": "adam", "alpha": 0.6, "num_steps": 30, "svd_proj_space": space}
    got, _ = folded(base, models, mgda=False, **given)
    # A weight that the moving average never lets go is a fixed one, by another path through the code.
    held, _ = folded(base, models, ema_beta=1.0, **given)
    moved = float((point.detach() - (models[0].double() + models[1].double()) / 2).norm())
    assert float((got.double() - point.detach()).norm()) < 2e-3 * moved
    assert float((held.double() - point.detach()).norm()) < 2e-3 * moved


@pytest.mark.parametrize("solver", ["exact", "adam"])
@pytest.mark.parametrize("shape", [(12, 16), (6, 40), (40, 6)])
def test_a_device_without_float64_gives_nearly_the_same(solver, shape, monkeypatch):
    """Factorised in float32, as on Apple's GPU: the same merge to a thousandth of the task vector."""
    base, *models = three(*shape, size=0.5)
    want, _ = folded(base, models, solver=solver)
    monkeypatch.setattr(spectra, "working_dtype", lambda device: torch.float32)
    got, (record,) = folded(base, models, solver=solver)
    assert float((got - want).norm() / (want - base).norm()) < 1e-3
    assert record["objective_after"] < record["objective_before"]
    assert torch.equal(folded(base, [models[0]] * 2, solver=solver)[0], models[0])


# Where the objective says little


@pytest.mark.parametrize("solver", ["exact", "adam"])
@pytest.mark.parametrize("shape", [(6, 6), (4, 20), (20, 4)])
def test_equal_models_are_that_model_bit_for_bit(solver, shape):
    base, model, _ = three(*shape)
    got, records = folded(base, [model] * 3, solver=solver)
    assert torch.equal(got, model)
    assert records[0]["objective_before"] == records[0]["objective_after"] == 0
    assert records[1]["rank_merged"] == records[1]["rank_incoming"] == min(shape)


@pytest.mark.parametrize("solver", ["exact", "adam"])
def test_one_model_is_that_model(solver):
    base, model, _ = three(5, 6)
    got, records = folded(base, [model], solver=solver)
    assert torch.equal(got, model)
    assert records == []


@pytest.mark.parametrize("solver", ["exact", "adam"])
def test_models_equal_to_the_base_are_the_base(solver):
    base, *_ = three(5, 6)
    got, records = folded(base, [base, base], solver=solver)
    assert torch.equal(got, base)
    assert records[0]["rank_merged"] == records[0]["rank_incoming"] == 0


@pytest.mark.parametrize("space", ["uv", "u", "v"])
@pytest.mark.parametrize("shape", [(8, 8), (8, 12), (5, 30), (30, 5)])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("alpha", [0.8, 0.01])
def test_a_frozen_incoming_layer_has_no_say(space, shape, rank, alpha):
    """Whatever alpha (but 0): the merged model stays, up to rounding."""
    base, model, _ = three(*shape, ranks=(rank, None))
    for models in ([model, base], [base, model]):
        got, (record,) = folded(base, models, alpha=alpha, svd_proj_space=space, svd_epsilon=1.0)
        assert float((got - model).norm() / (model - base).norm()) < 1e-5
        assert record["objective_after"] < 1e-10 * record["objective_before"]


@pytest.mark.parametrize("mgda", [True, False])
def test_adam_survives_a_frozen_layer(mgda):
    """The published code divides 0 by 0 here; the weight stays where it was instead."""
    base, model, _ = three(8, 12, size=0.01)
    for models in ([model, base], [base, model]):
        got, (record,) = folded(base, models, solver="adam", mgda=mgda, lr=1e-3)
        assert record["weight"] == 0.8
        before = float(((model + base) / 2 - model).norm())
        assert float((got - model).norm()) < 0.5 * before
        assert record["objective_after"] < 0.25 * record["objective_before"]


@pytest.mark.parametrize("solver", ["exact", "adam"])
@pytest.mark.parametrize("shape", [(8, 8), (5, 30)])
def test_projections_of_rank_zero_leave_the_average(solver, shape):
    """The reference's count keeps nothing of a task vector of rank 1."""
    rows, columns = shape
    # Signs on a zero base: float32 holds task vectors of exactly rank one.
    models = [torch.outer(normal(shape[0], seed=s), normal(shape[1], seed=s + 5)).sign().float() for s in (1, 2)]
    got, (record,) = folded(torch.zeros(shape), models, solver=solver, rank_rule="below")
    assert record["rank_merged"] == record["rank_incoming"] == 0
    assert torch.equal(got, (models[0] + models[1]) / 2)
    assert record["objective_before"] == record["objective_after"] == 0


@pytest.mark.parametrize(("alpha", "kept"), [(1.0, 0), (0.0, 1)])
@pytest.mark.parametrize("shape", [(8, 8), (5, 30), (30, 5)])
def test_all_the_weight_on_one_model(alpha, kept, shape):
    """That model's loss goes to zero: wherever its task vector acts, the result is that model."""
    base, *models = three(*shape, ranks=(2, 2))
    got, (record,) = folded(base, models, alpha=alpha, svd_epsilon=0.999)
    assert record["objective_after"] < 1e-9 * record["objective_before"]
    tau = (models[kept] - base).double()
    u, _, vh = torch.linalg.svd(tau, full_matrices=False)
    difference = (got - models[kept]).double()
    assert float((u[:, :2].mT @ difference).norm()) < 1e-4 * float(tau.norm())
    assert float((difference @ vh[:2].mT).norm()) < 1e-4 * float(tau.norm())


def test_no_weight_on_the_only_loss_leaves_the_average():
    base, model, _ = three(6, 9)
    got, _ = folded(base, [model, base], alpha=0.0)
    torch.testing.assert_close(got, (model + base) / 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", ["exact", "adam"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("owner", ["base", "merged", "incoming"])
def test_values_that_are_not_finite_are_refused(solver, value, owner):
    base, merged, incoming = (matrix.clone() for matrix in three(5, 6))
    {"base": base, "merged": merged, "incoming": incoming}[owner][2, 3] = value
    fold, parameters = Dop(), DopParameters(solver=solver)
    state = fold.start(base, merged, Context(parameters, Role.LINEAR, 1))
    with pytest.raises(MergeError, match=f"the .*{owner[:6]}.* holds a value that is not finite"):
        fold.step(state, incoming, Context(parameters, Role.LINEAR, 2))


def test_infinities_in_equal_places_are_refused_too():
    base, model, _ = three(3, 4)
    model[0, 0] = float("inf")
    with pytest.raises(MergeError, match="merged so far"):
        folded(base, [model, model])


def test_a_base_is_needed():
    with pytest.raises(ValueError, match="base"):
        Dop().start(None, torch.zeros(2, 2), Context(DopParameters(), Role.LINEAR, 1))


@pytest.mark.parametrize("solver", ["exact", "adam"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 1)])
def test_slim_matrices(solver, shape):
    base, *models = three(*shape)
    objective = Objective(base, models, 0.8)
    got, (record,) = folded(base, models, solver=solver)
    assert got.shape == torch.Size(shape)
    assert float(objective(got)) <= record["objective_before"] * (1 + 1e-5)
    if solver == "exact":
        torch.testing.assert_close(got.double(), objective.dense_minimum(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", ["exact", "adam"])
def test_empty_matrices(solver):
    empty = torch.zeros(0, 4)
    got, _ = folded(empty, [empty, empty], solver=solver)
    assert got.shape == (0, 4)


@pytest.mark.parametrize("solver", ["exact", "adam"])
@pytest.mark.parametrize("shape", [(12, 16), (6, 40), (40, 6)])
def test_the_same_input_gives_the_same_bytes(solver, shape):
    base, *models = three(*shape)
    one, two = (folded(base, models, solver=solver) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert one[1] == two[1]
