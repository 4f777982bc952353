"""The k-th largest magnitude, against sorting."""

from __future__ import annotations

import pytest
import torch

from dopkit.linalg import magnitude
from dopkit.linalg.magnitude import kth_largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block", [1 << 20, 7])
def test_every_place_of_a_sorted_list(dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(magnitude, "BLOCK", block)
    values = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=dtype)
    values[5], values[6], values[7], values[8] = 0.0, -0.0, 1e-42, -3e38  # zeros, a subnormal, a huge one
    values[10:13] = -values[3]  # the same magnitude four times
    tensor = values.reshape(5, 6).mT  # not contiguous
    want = values.abs().sort(descending=True).values
    found = torch.stack([kth_largest(tensor, count) for count in range(1, 31)])
    assert found.dtype == dtype
    assert torch.equal(found, want)


def test_one_and_none() -> None:
    assert kth_largest(torch.tensor(-2.5), 1).item() == 2.5
    for count in (0, 3):
        with pytest.raises(ValueError, match=f"no magnitude number {count} among 2"):
            kth_largest(torch.ones(2), count)


@pytest.mark.parametrize("kind", ["spread", "few values", "mostly zeros", "in stripes"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_finds_what_counting_digits_finds(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it does not, on stripes that the sample misses, it says so; the answer is the same."""
    monkeypatch.setattr(magnitude, "SAMPLE", 1 << 12)
    monkeypatch.setattr(magnitude, "CACHED", 1 << 10)
    values = torch.randn(1 << 15, generator=torch.Generator().manual_seed(0), dtype=dtype)
    if kind == "few values":
        values = (4 * values).round()
    elif kind == "mostly zeros":
        values[values < 0.5] = 0
    elif kind == "in stripes":
        values[::8] *= 1e-3  # what the sample sees
    want = values.abs().sort(descending=True).values
    found_by_sample = 0
    for count in (1, 2, 100, 5000, 1 << 14, 30000, (1 << 15) - 1, 1 << 15):
        near = magnitude._near_quantile(values.numpy(), count)
        found_by_sample += near is not None
        assert near in (None, want[count - 1].item())
        assert magnitude._by_digits(values, count) == kth_largest(values, count) == want[count - 1]
    assert found_by_sample >= 4 if kind != "in stripes" else found_by_sample <= 2


def test_nan_is_left_to_the_digits() -> None:
    values = torch.tensor([3.0, float("nan"), 1.0])
    assert magnitude._near_quantile(values.numpy(), 2) is None
    assert kth_largest(values, 1).isnan()
    assert kth_largest(values, 2).item() == 3
