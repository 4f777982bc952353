"""Tensors that lie in scratch files: their memory is free meanwhile, and their bytes come back."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from dopkit.engine.parking import ScratchPark, movable
from dopkit.errors import OutputError


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_was_away_is_the_same_again(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor, park = noise(300, 70, dtype=dtype), ScratchPark(tmp_path)
    turned, row, kept = tensor.mT, tensor[7], tensor.clone()
    assert tensor.nbytes < 1 << 16 or dtype is not torch.bfloat16
    big = tensor.nbytes > 1 << 16
    park.away(tensor, turned, None)
    assert tensor.untyped_storage().nbytes() == (0 if big else tensor.nbytes)
    assert turned.shape == (70, 300)
    park.away(row)  # it is away already
    park.here(turned)
    park.here(tensor)
    assert torch.equal(tensor, kept) and torch.equal(turned, kept.mT) and torch.equal(row, kept[7])
    tensor.add_(1)
    park.away(tensor)
    park.here(tensor)
    assert torch.equal(tensor, kept + 1)


def test_no_name_is_on_the_disk_and_no_file_stays_open(tmp_path: Path) -> None:
    park, tensors = ScratchPark(tmp_path, small=0), [noise(20, 20) for _ in range(3)]
    before = len(os.listdir("/dev/fd"))
    park.away(*tensors)
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/dev/fd")) == before + 3
    park.here(tensors[0])
    assert len(os.listdir("/dev/fd")) == before + 2
    park.forget()
    assert len(os.listdir("/dev/fd")) == before


def test_a_dropped_tensor_is_no_other(tmp_path: Path) -> None:
    """Memory that is given out again does not get the bytes of what was there before."""
    park = ScratchPark(tmp_path, small=0)
    for number in range(50):
        tensor = torch.full((40, 40), float(number))
        park.away(tensor)
        if number % 2:
            park.here(tensor)
            assert bool((tensor == number).all())
        del tensor
    park.forget()


def test_what_others_have_looked_at_stays(tmp_path: Path) -> None:
    tensor, park = noise(200, 200), ScratchPark(tmp_path)
    assert movable(tensor) is tensor
    tensor.numpy()
    park.away(tensor)
    assert tensor.untyped_storage().nbytes() == tensor.nbytes
    free = movable(tensor)
    park.away(free)
    assert free.untyped_storage().nbytes() == 0
    park.here(free)
    assert torch.equal(free, tensor)


def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor, park = noise(200, 200), ScratchPark(tmp_path)
    kept = tensor.clone()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", full)
        with pytest.raises(OutputError, match="no place on the disk") as error:
            park.away(tensor)
    assert "320 kB cannot be laid aside" in str(error.value) and "No space left" in str(error.value)
    assert torch.equal(tensor, kept)
    park.away(tensor)
    park.here(tensor)
    assert torch.equal(tensor, kept)


def test_a_large_one_goes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dopkit.engine.parking._CHUNK", 1000)
    tensor, park = noise(100, 100), ScratchPark(tmp_path)
    kept = tensor.clone()
    park.away(tensor)
    park.here(tensor)
    assert torch.equal(tensor, kept)
