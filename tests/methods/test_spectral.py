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
