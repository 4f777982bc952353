"""Rebuilt spectra by hand: diagonal matrices, whose singular vectors are the axes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from methods.folding import distance, family, fold, join, normal

from dopkit import methods
from dopkit.roles import Role


def merged(name: str, base: torch.Tensor, models: list[torch.Tensor], **given: Any) -> torch.Tensor:
    method = methods.find(name)
    parameters = method.parameters.model_validate(given)
    rule = method.rule_for(parameters, "w", Role.LINEAR, tuple(base.shape))
    return (join if rule.joint else fold)(rule, parameters, base, models)[0]


def diagonal(*values: float) -> torch.Tensor:
    return torch.diag(torch.tensor([float(value) for value in values]))


def test_tsv_takes_the_best_of_each() -> None:
    """Of two tasks half of the triplets each; their axes differ, so that they are orthogonal as they are."""
    base = torch.ones(4, 4)
    models = [base + diagonal(9.0, 7, 2, 1), base + diagonal(1.0, 2, 6, 5)]
    assert torch.allclose(merged("tsv", base, models), base + diagonal(9, 7, 6, 5), atol=1e-5)
    assert torch.allclose(merged("tsv", base, models, **{"lambda": 2.0}), base + 2 * diagonal(9, 7, 6, 5), atol=1e-5)


def test_tsv_makes_common_directions_orthogonal() -> None:
    """The merged left singular vectors are the nearest orthonormal ones to those of the tasks."""
    base = torch.zeros(8, 6, dtype=torch.float64)
    models = [normal(8, 6, seed=seed) for seed in (1, 2, 3)]
    kept = [torch.linalg.svd(model, full_matrices=False) for model in models]
    left = torch.cat([found.U[:, :2] for found in kept], 1)
    right = torch.cat([found.Vh[:2] for found in kept], 0)
    values = torch.cat([found.S[:2] for found in kept])

    def polar(matrix: torch.Tensor) -> torch.Tensor:
        eigen = torch.linalg.eigh(matrix.mT @ matrix)
        return matrix @ (eigen.eigenvectors / eigen.eigenvalues.sqrt()) @ eigen.eigenvectors.mT

    want = polar(left) @ torch.diag(values) @ polar(right.mT).mT
    assert distance(merged("tsv", base, models), want, base) < 1e-6


@pytest.mark.parametrize("name", ["tsv", "iso_cts"])
def test_copies_of_a_model_bring_no_directions_of_their_own(name: str) -> None:
    """Where vectors depend on each other, none is made up: the result stays in the span of the task vectors."""
    base, _ = family(10, 8)
    thin = base + torch.outer(base[:, 0], base[1]) + torch.outer(base[:, 2], base[3])
    found = merged(name, base, [thin, thin, thin]) - base
    assert int(torch.linalg.matrix_rank(found.double(), rtol=1e-4)) == 2


def test_iso_c_by_hand() -> None:
    """Sums 4, 3, 2: three times the mean singular value 3; a zero one does not count."""
    base = torch.zeros(3, 3)
    assert torch.allclose(merged("iso_c", base, [diagonal(1, 1, 2), diagonal(3, 2, 0)]), diagonal(3, 3, 3), atol=1e-5)
    assert torch.allclose(merged("iso_c", base, [diagonal(1, 1, 0), diagonal(3, 3, 0)]), diagonal(4, 4, 0), atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_iso_c_flattens_the_spectrum(shape: tuple[int, int]) -> None:
    base, models = family(*shape)
    found = (merged("iso_c", base, models, **{"lambda": 1.5}) - base).double()
    total = sum(model - base for model in models).double()
    values = torch.linalg.svdvals(found)
    assert torch.allclose(values, torch.full_like(values, 1.5 * float(torch.linalg.svdvals(total).mean())), rtol=1e-3)


def test_iso_cts_by_hand() -> None:
    """Of four directions two are common: those of the sum (9, 8, 5, 3). Of what they leave each task has one: 5 of the
    first, 3 of the second. The mean of 9, 8, 5 and 3 is 6.25.
    """
    base = torch.zeros(4, 4)
    models = [diagonal(4.0, 4, 5, 0), diagonal(5.0, 4, 0, 3)]
    assert torch.allclose(merged("iso_cts", base, models, common_share=0.5), diagonal(*[6.25] * 4), atol=1e-5)


def test_iso_cts_with_everything_common_is_iso_c() -> None:
    base, models = family(6, 9)
    one, other = merged("iso_cts", base, models, common_share=1.0), merged("iso_c", base, models)
    assert distance(one, other, base) < 1e-5


def ace(base: torch.Tensor, models: list[torch.Tensor], gamma: float, epsilon: float, share: float) -> torch.Tensor:
    """The method with all task vectors in hand, by its formulas, in float64."""
    taus = [(model - base).double() for model in models]
    centred = [tau - tau.mean(0) for tau in taus]
    covariances = [one.T @ one for one in centred]
    sizes = torch.tensor([float(tau.square().sum()) for tau in taus], dtype=torch.float64)
    uneven = bool(sizes.log().var() / sizes.log().mean() ** 2 > gamma)
    traces = [float(one.trace()) for one in covariances]
    scaled = [one / trace if uneven else one for one, trace in zip(covariances, traces, strict=True)]
    unit = torch.eye(base.shape[1], dtype=torch.float64)
    ridged = [one + epsilon / (trace if uneven else 1) * unit for one, trace in zip(scaled, traces, strict=True)]
    prior = sum(scaled).mean(0, keepdim=True) / (sizes.mean() if uneven else 1)
    merged = sum(tau @ one for tau, one in zip(taus, ridged, strict=True)) @ torch.linalg.inv(sum(ridged) + prior)
    if uneven:
        mean = sum(ridged) / len(taus)
        rest = sum(tau @ (one - mean) for tau, one in zip(taus, scaled, strict=True)) + merged
        left, values, right = torch.linalg.svd(rest, full_matrices=False)
        rank = int(share * len(values))
        merged = merged + values[:rank].mean() * left[:, :rank] @ right[:rank]
    return base.double() + merged


@pytest.mark.parametrize(("shape", "gamma"), [((9, 6), 10.0), ((6, 9), 10.0), ((9, 6), 0.0), ((6, 9), 0.0)])
def test_ace_one_by_one_is_all_at_once(shape: tuple[int, int], gamma: float) -> None:
    """Whether the sizes of the task vectors are evened out or not."""
    base, models = family(*shape, count=4, dtype=torch.float64)
    models = [base + factor * (model - base) for factor, model in zip((1, 3, 0.5, 2), models, strict=True)]
    found = merged("ace", base, models, gamma=gamma, epsilon=1e-3, k_share=0.5)
    assert distance(found, ace(base, models, gamma, 1e-3, 0.5), base) < 1e-6


def test_ace_of_a_transposed_layer_is_the_transposed_merge() -> None:
    """GPT-2's layers have their inputs first."""
    base, models = family(6, 9, dtype=torch.float64)
    method = methods.find("ace")
    parameters = method.parameters.model_validate({"gamma": 0.0})
    rule = method.rule_for(parameters, "w", Role.CONV1D, (9, 6))
    found = fold(rule, parameters, base.T.contiguous(), [model.T.contiguous() for model in models], Role.CONV1D)[0]
    assert torch.allclose(found.T, merged("ace", base, models, gamma=0.0), atol=1e-12)
