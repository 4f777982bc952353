"""Which copies are made on the way to a device. Run: python -m pytest tests/engine/test_moving.py"""

from contextlib import contextmanager

import pytest
import torch

from dopkit.engine.moving import Mover


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

    def record_stream(self, stream):
        self.calls.append(("used on", stream))


@pytest.fixture
def calls(monkeypatch):
    """What is asked of torch, with GPUs that are not there."""
    calls = []

    class Stream:
        def __init__(self, device):
            self.device = device

        def __repr__(self):
            return f"copies on {self.device}"

    class Current:
        def wait_stream(self, other):
            calls.append(("wait for", str(other)))

    @contextmanager
    def stream(given):
        calls.append(("begin", str(given)))
        yield
        calls.append(("end", str(given)))

    current = Current()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    return calls, current


def test_a_tensor_on_the_cpu_is_cast_and_no_more():
    tensor = torch.ones(3)
    move = Mover(torch.device("cpu"))
    assert move(tensor, torch.float32) is tensor
    assert move(tensor.bfloat16(), torch.float32).dtype == torch.float32


def test_another_device_gets_what_it_asks_for():
    assert Mover(torch.device("meta"))(torch.ones(3), torch.float64).device.type == "meta"


def test_to_a_gpu_in_its_own_dtype_on_a_stream_of_copies_that_the_work_waits_for(calls):
    made, current = calls
    gpu = torch.device("cuda", 1)
    Mover(gpu)(Recorded("cpu", made), torch.float32)
    assert made == [
        "pin",
        ("begin", "copies on cuda:1"),
        (gpu, ("non_blocking", True)),
        ("end", "copies on cuda:1"),
        ("wait for", "copies on cuda:1"),
        ("used on", current),
        (torch.float32,),
    ]


def test_between_gpus_nothing_is_pinned(calls):
    made, _ = calls
    gpu = torch.device("cuda", 1)
    Mover(gpu)(Recorded("cuda:0", made), torch.float32)
    assert made == [(("device", gpu), ("dtype", torch.float32))]
