"""TIES by hand, and against the method over all models at once."""

from __future__ import annotations

import pytest
import torch
from methods.folding import distance, family, fold

from dopkit.linalg.magnitude import kth_largest
from dopkit.methods import trimming
from dopkit.methods.delta_parameters import TiesParameters
from dopkit.methods.rules import TIES

Given = TiesParameters.model_validate


def test_by_hand() -> None:
    """Base 0, three models of four entries, density 1/2: the two largest of each stay.

    (4, -3, 1, 0) -> (4, -3, 0, 0);  (-6, 1, 2, 0) -> (-6, 0, 2, 0);  (3, 1, -2, 0) -> (3, 0, -2, 0)
    Sums 1, -3, 0, 0: elected +, -, +, +. Means of those that agree: (4 + 3) / 2, -3, 2, 0.
    """
    models = [torch.tensor([4.0, -3, 1, 0]), torch.tensor([-6.0, 1, 2, 0]), torch.tensor([3.0, 1, -2, 0])]
    base = torch.zeros(4)
    assert fold(TIES, Given({"density": 0.5}), base, models)[0].tolist() == [3.5, -3, 2, 0]
    assert fold(TIES, Given({"density": 0.5, "lambda": 2.0}), base, models)[0].tolist() == [7, -6, 4, 0]
    assert fold(TIES, Given({"density": 0.5, "normalize": False}), base, models)[0].tolist() == [7, -3, 2, 0]
    assert fold(TIES, Given({"density": 0.5}), base + 10, [model + 10 for model in models])[0].tolist() == [
        13.5, 7, 12, 10,
    ]  # fmt: skip


def test_weights_and_densities_of_their_own() -> None:
    """Weights 1 and 3 on (4, 1) and (-2, 5), of which the second is trimmed to its larger entry: (4 + 0), (1 + 15)."""
    models = [torch.tensor([4.0, 1]), torch.tensor([-2.0, 5])]
    parameters = [Given({"density": 1.0}), Given({"density": 0.5, "weight": 3.0})]
    assert fold(TIES, parameters, torch.zeros(2), models)[0].tolist() == [4, 4]
    parameters = [Given({"density": 1.0}), Given({"density": 1.0, "weight": 3.0})]
    assert fold(TIES, parameters, torch.zeros(2), models)[0].tolist() == [-2, 4]  # 4 - 6 elects the negative


def test_of_equal_magnitudes_all_stay() -> None:
    """k = 1 of four entries, three of which are as large as the largest."""
    models = [torch.tensor([2.0, -2, 1, 2])]
    assert fold(TIES, Given({"density": 0.25}), torch.zeros(4), models)[0].tolist() == [2, -2, 0, 2]


def test_at_least_one_entry_stays() -> None:
    """Of a scalar, whatever the density."""
    assert fold(TIES, Given({"density": 0.01}), torch.tensor(1.0), [torch.tensor(3.0)])[0].item() == 3


def joint(base: torch.Tensor, models: list[torch.Tensor], densities: list[float], weights: list[float]) -> torch.Tensor:
    """The method with all task vectors in hand, in float64, by sorting."""
    trimmed = []
    for model, density in zip(models, densities, strict=True):
        tau = model.double() - base.double()
        kept = tau.abs().flatten().sort(descending=True).values[int(density * tau.numel()) - 1]
        trimmed.append(torch.where(tau.abs() >= kept, tau, 0))
    stacked, weight = torch.stack(trimmed), torch.tensor(weights, dtype=torch.float64)[:, None, None]
    elected = torch.where((stacked * weight).sum(0) >= 0, 1.0, -1.0)
    agree = (stacked.sign() == elected).double()
    return base.double() + (stacked * weight * agree).sum(0) / (weight * agree).sum(0).clamp(min=1e-9)


@pytest.mark.parametrize("densities", [[0.2] * 5, [1.0] * 5, [0.1, 0.3, 0.5, 0.7, 0.9]])
def test_one_by_one_is_all_at_once(densities: list[float]) -> None:
    base, models = family(21, 13, count=5)
    weights = [1.0, 0.5, 2.0, 0.3, 1.0]
    parameters = [Given({"density": density, "weight": own}) for density, own in zip(densities, weights, strict=True)]
    assert distance(fold(TIES, parameters, base, models)[0], joint(base, models, densities, weights), base) < 1e-5


def test_a_negative_weight_votes_and_adds_the_other_way() -> None:
    """Weights 1 and -1/2 on (4, 1) and (2, 4): (4, 1) and (-1, -2), elected +, -; divided by 1 and -1/2."""
    models = [torch.tensor([4.0, 1]), torch.tensor([2.0, 4])]
    parameters = [Given({}), Given({"weight": -0.5})]
    assert fold(TIES, parameters, torch.zeros(2), models)[0].tolist() == [4, 4]
    parameters = [Given({"normalize": False}), Given({"weight": -0.5, "normalize": False})]
    assert fold(TIES, parameters, torch.zeros(2), models)[0].tolist() == [4, -2]


def test_rescale_restores_the_sum_of_magnitudes() -> None:
    """(4, -3, 1, 0) at density 1/2: (4, -3), whose magnitudes add up to 7 instead of 8."""
    given = Given({"density": 0.5, "rescale": True, "normalize": False})
    found = fold(TIES, given, torch.zeros(4), [torch.tensor([4.0, -3, 1, 0])])[0]
    assert found.tolist() == pytest.approx([32 / 7, -24 / 7, 0, 0])


def test_the_defaults_are_mergekits() -> None:
    assert TiesParameters().in_force() == {
        "density": 1.0, "weight": 1.0, "lambda": 1.0, "normalize": True, "rescale": False,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, -0.4, 0.3), (1.0, -1.0, 0.0)])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_same_bits_as_with_masks(
    dtype: torch.dtype, weights: tuple[float, ...], normalize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choices by bits and by shrinking, block by block, against the definition with masks over whole tensors."""
    monkeypatch.setattr(trimming, "CACHED", 100)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(30, 41, generator=generator).bfloat16().to(dtype)
    models = [(base + 0.01 * torch.randn(30, 41, generator=generator)).bfloat16().to(dtype) for _ in weights]
    models[0][:10] = base[:10]
    parameters = [
        Given({"weight": weight, "density": 0.4, "normalize": normalize, "lambda": 0.9}) for weight in weights
    ]
    sums = [torch.zeros_like(base) for _ in range(4)]
    for model, weight in zip(models, weights, strict=True):
        entries = model - base
        entries[entries.abs() < kth_largest(entries, int(0.4 * entries.numel()))] = 0
        entries *= weight
        sums[0] += entries.clamp(min=0)
        sums[1] += entries.clamp(max=0)
        sums[2] += (entries > 0).to(dtype) * weight
        sums[3] += (entries < 0).to(dtype) * weight
    elected = sums[0] + sums[1] >= 0
    want = torch.where(elected, sums[0], sums[1])
    if normalize:
        divisor = torch.where(elected, sums[2], sums[3])
        want /= torch.where(divisor.abs() < 1e-8, 1, divisor)
    want = want * 0.9 + base
    found = fold(TIES, parameters, base, [model.clone() for model in models])[0]
    bits = torch.int32 if dtype is torch.float32 else torch.int64
    assert torch.equal(found.view(bits), want.view(bits))
