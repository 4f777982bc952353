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
