"""Which copies are made on the way to a device. Run: python -m pytest tests/engine/test_moving.py"""

import pytest
import torch

from dopkit.engine.moving import moved, own_stream


class Recorded:
    """Stands for a tensor, and writes down what is asked of it."""

    def __init__(self, device, calls):
        self.device, self.calls = torch.device(device), calls

    def pin_memory(self):
        self.calls.append("pin")
        return self

    def to(self, *given, **named):
        self.calls.append((*given, *sorted(named.items())))
        return self


def test_a_tensor_that_is_there_already_is_itself():
    tensor = torch.ones(3)
    assert moved(tensor, torch.device("cpu"), torch.float32) is tensor


def test_a_cast_on_the_cpu():
    found = moved(torch.ones(3, dtype=torch.bfloat16), torch.device("cpu"), torch.float32)
    assert found.dtype == torch.float32


def test_another_device_gets_what_it_asks_for():
    assert moved(torch.ones(3), torch.device("meta"), torch.float64).device.type == "meta"


def test_to_a_gpu_out_of_pinned_memory_and_cast_there():
    calls = []
    gpu = torch.device("cuda", 1)
    moved(Recorded("cpu", calls), gpu, torch.float32)
    assert calls == ["pin", (gpu, ("non_blocking", True)), (torch.float32,)]


def test_between_gpus_nothing_is_pinned():
    calls = []
    gpu = torch.device("cuda", 1)
    moved(Recorded("cuda:0", calls), gpu, torch.float32)
    assert calls == [(("device", gpu), ("dtype", torch.float32))]


@pytest.mark.parametrize("device", ["cpu", "mps", "meta"])
def test_no_streams_without_a_gpu(device):
    with own_stream(torch.device(device)) as stream:
        assert stream is None


def test_a_stream_of_its_own_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: ("stream", device))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: ("context", stream))
    gpu = torch.device("cuda", 0)
    assert own_stream(gpu) == ("context", ("stream", gpu))
