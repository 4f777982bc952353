"""Where a tensor is merged. There is no GPU here: the logic is tested on sizes alone."""

from __future__ import annotations

import pytest
import torch

from dopkit import device
from dopkit.errors import PlanError


def test_cpu_takes_everything() -> None:
    devices = device.choose("cpu")
    assert devices.main.type == "cpu"
    assert devices.free_bytes > 10**8
    assert devices.place(10**15).type == "cpu"
    assert devices.engine == f"cpu torch-{torch.__version__} threads-{torch.get_num_threads()}"


def test_a_device_takes_what_fits() -> None:
    devices = device.Devices(torch.device("cuda", 0), free_bytes=1000)
    assert devices.place(1000) == torch.device("cuda", 0)
    assert devices.place(1001) == torch.device("cpu")
    assert devices.place(10, float64=True) == torch.device("cuda", 0)
    assert device.Devices(torch.device("mps"), 1000).place(10, float64=True) == torch.device("cpu")


def test_auto_takes_what_there_is() -> None:
    wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert device.choose("auto").main.type == wanted


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(PlanError, match=r"there is no device cuda:3 here\n  `--device auto`"):
        device.choose("cuda:3")
