"""OPCM against the reference's output, its formula written out, and numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from methods.folding import distance, family, fold
from safetensors.torch import load_file

from dopkit.methods import BUILTIN
from dopkit.methods.continual_parameters import OpcmParameters
from dopkit.methods.rules import OPCM, SUM
from dopkit.roles import Role

GOLDEN = Path(__file__).parents[1] / "golden" / "clip-tiny"
CASES = json.loads((GOLDEN / "cases.json").read_text())
LINEAR = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def read(folder: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / folder / "model.safetensors")


def length(model: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> float:
    """The norm of a whole model's task vector."""
    return float(sum((model[name].double() - base[name].double()).square().sum() for name in base) ** 0.5)


def merge(base: torch.Tensor, models: list[torch.Tensor], role: Role = Role.LINEAR, **given: object) -> torch.Tensor:
    return fold(OPCM, OpcmParameters.model_validate(given), base, models, role)[0]


def test_the_reference_is_met_on_every_tensor() -> None:
    """From the folds and one factor for the whole model, which is what the reference's factors at each step come to.

    The reference does not merge `class_embedding`, but divides it by the factor of each step like the rest: in units
    that know no factors, the first model's task vector divided by the factor of the step before the last.
    """
    parameters = OpcmParameters(alpha=CASES["opcm"]["alpha"], rank_rule="below")
    base, want = read("base"), read("opcm_alpha50")
    models = [read(name) for name in CASES["order"]]
    lengths = [length(model, base) for model in models]
    token = "vision_model.embeddings.class_embedding"
    factor = 1.0
    for count in (2, 3):
        merged = {}
        for name in base:
            *_, module, kind = name.split(".")
            matrix = module in LINEAR and kind == "weight"
            rule, role = (OPCM, Role.LINEAR) if matrix else (SUM, Role.NORM)
            merged[name], _ = fold(rule, parameters, base[name], [model[name] for model in models[:count]], role)
        merged[token] = base[token] + (models[0][token] - base[token]) / factor
        factor = length(merged, base) / (sum(lengths[:count]) / count)
    for name in base:
        tau = (want[name].double() - base[name].double()).norm()
        found = base[name].double() + (merged[name].double() - base[name].double()) / factor
        # The reference's own float32 steps leave half a unit in the last place of each weight and step.
        rounding = 6e-8 * want[name].norm()
        assert float((found - want[name]).norm()) < 1e-5 * float(tau) + 2 * float(rounding), name
        if name.split(".")[-2] in LINEAR and name.endswith("weight"):
            assert float((found - want[name]).norm()) < 1e-5 * float(tau), name


def test_by_hand() -> None:
    """Base 0, merged diag(3, 1), incoming (5 6; 7 8): U and V are the axes.

    alpha 0.5: the first direction holds 3/4 of the sum, so r = 1. Z loses its leading 1 x 1 block and its diagonal.
    """
    base = torch.zeros(2, 2)
    models = [torch.diag(torch.tensor([3.0, 1.0])), torch.tensor([[5.0, 6.0], [7.0, 8.0]])]
    found, records = fold(OPCM, OpcmParameters(), base, models)
    torch.testing.assert_close(found, torch.tensor([[3.0, 6.0], [7.0, 1.0]]))
    (record,) = records
    assert record == pytest.approx(
        {"step": 2, "rank_merged": 1, "norm_incoming": 174**0.5, "norm_added": 85**0.5}, rel=1e-6
    )


@pytest.mark.parametrize(
    ("alpha", "rule", "rank", "left"),
    [
        (0.5, "at-least", 2, [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]),
        (0.5, "below", 1, [[0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]),
        (0.0, "below", 0, [[0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]]),
        (1.0, "below", 3, [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 0]]),
        (1.0, "at-least", 4, [[0] * 4] * 4),
    ],
)
def test_what_each_alpha_leaves_of_a_matrix_of_ones(alpha: float, rule: str, rank: int, left: list[list[int]]) -> None:
    """Singular values 4, 3, 2, 1 along the axes; shares 0.4, 0.7, 0.9, 1."""
    base = torch.zeros(4, 4)
    merged = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    parameters = OpcmParameters(alpha=alpha, rank_rule=rule)
    found, records = fold(OPCM, parameters, base, [merged, torch.ones(4, 4)])
    torch.testing.assert_close(found - merged, torch.tensor(left).float())
    assert records[0]["rank_merged"] == rank


def test_a_direction_that_the_merged_one_lacks_is_open() -> None:
    """Merged of rank 1: nothing is taken from the incoming one outside of that one entry, whatever alpha is."""
    base, merged = torch.zeros(3, 3), torch.zeros(3, 3)
    merged[0, 0] = 2
    found = merge(base, [merged, torch.ones(3, 3)], alpha=1.0)
    torch.testing.assert_close(found, torch.tensor([[2.0, 1, 1], [1, 1, 1], [1, 1, 1]]))


@pytest.mark.parametrize("shape", [(9, 9), (6, 14), (14, 6)])
@pytest.mark.parametrize("alpha", [0.3, 0.8])
def test_the_published_formula(shape: tuple[int, int], alpha: float) -> None:
    """Against full singular value decompositions, with Z written out over all m x n."""
    base, models = family(*shape, count=4)
    merged = models[0].double()
    for model in models[1:]:
        u, s, vh = torch.linalg.svd(merged - base.double(), full_matrices=True)
        rank = int((s.cumsum(0) / s.sum() < alpha).sum()) + 1
        z = u.mT @ (model.double() - base.double()) @ vh.mT
        z.diagonal().zero_()
        z[:rank, :rank] = 0
        merged = merged + u @ z @ vh
    assert distance(merge(base, models, alpha=alpha), merged, base) < 1e-5


def test_sides_are_alike() -> None:
    """Transposed models give the transposed result: GPT-2's layers need no care."""
    base, models = family(5, 9)
    found = merge(base, models)
    turned = merge(base.mT.contiguous(), [model.mT.contiguous() for model in models], Role.CONV1D)
    assert distance(turned.mT, found, base) < 1e-6


def test_a_copy_of_the_merged_model_adds_nothing() -> None:
    base, (one, _, _) = family(6, 8)
    assert distance(merge(base, [one, one, one]), one, base) < 1e-5


def test_the_size_of_task_vectors_does_not_matter() -> None:
    """Ten thousand times smaller ones on a zero base give ten thousand times smaller results."""
    _, models = family(6, 8)
    base = torch.zeros(6, 8)
    found = merge(base, [model * 1e-4 for model in models])
    assert distance(found * 1e4, merge(base, models), base) < 1e-5


def test_rules_and_scale() -> None:
    method = BUILTIN["opcm"]
    assert method.scale_of(OpcmParameters()) == "norm"
    for role, shape, rule in (
        (Role.LINEAR, (4, 4), OPCM), (Role.CONV1D, (4, 4), OPCM), (Role.EXPERTS, (2, 4, 4), OPCM),
        (Role.HEAD, (4, 4), OPCM), (Role.HEAD, (4,), SUM), (Role.EMBEDDING, (4, 4), SUM), (Role.NORM, (4,), SUM),
    ):  # fmt: skip
        assert method.rule_for(OpcmParameters(), "x", role, shape) is rule
