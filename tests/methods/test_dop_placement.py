"""Where DOP's tensors live: with their inputs, and read by the host only where it must be.

Run: python -m pytest tests/methods/test_dop_placement.py. No GPU is needed: tensors that name no device of their own
would be made on the default one, which here is a device that cannot compute.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dopkit.linalg import spectra
from dopkit.methods.all_tasks import DopAll
from dopkit.methods.dop import Dop
from dopkit.methods.fold import Context
from dopkit.methods.parameters import DopParameters
from dopkit.roles import Role

SHAPES = [(24, 24), (20, 33), (33, 20), (12, 40), (300, 310)]


def models(rows, columns):
    generator = torch.Generator().manual_seed(rows)
    base = torch.randn(rows, columns, generator=generator)
    return base, [base + 0.05 * torch.randn(rows, columns, generator=generator) for _ in range(2)]


def merged(fold, base, experts, **given):
    parameters = DopParameters(**given)
    state = fold.start(base, experts[0].clone(), Context(parameters, Role.LINEAR, 1))
    state = fold.step(state, experts[1].clone(), Context(parameters, Role.LINEAR, 2))
    return fold.finish(state, Context(parameters, Role.LINEAR, 2))


WAYS = [
    (Dop, {"solver": "exact"}),
    (Dop, {"solver": "exact", "svd_epsilon": 0.3}),
    (Dop, {"solver": "exact", "rank_rule": "below"}),
    (Dop, {"solver": "adam", "num_steps": 3}),
    (Dop, {"solver": "adam", "num_steps": 3, "mgda": False, "svd_epsilon": 0.3}),
    (DopAll, {"solver": "exact", "history": "all"}),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("fold", "given"), WAYS)
def test_every_tensor_is_made_where_the_models_are(fold, given, shape):
    base, experts = models(*shape)
    want = merged(fold(), base, experts, **given)
    with torch.device("meta"):
        assert torch.zeros(1).device.type == "meta"
        found = merged(fold(), base, experts, **given)
    assert found.device == base.device
    assert torch.equal(found, want)


class Looks(TorchDispatchMode):
    """Counts how often a number is fetched from a tensor, which makes the host wait for the device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def looks(shape, **given):
    base, experts = models(*shape)
    with Looks() as seen:
        merged(Dop(), base, experts, **given)
    return seen.count


@pytest.mark.parametrize("mgda", [True, False])
@pytest.mark.parametrize("shape", SHAPES[:4])
def test_no_step_of_adam_waits_for_single_numbers(shape, mgda):
    """Multi-gradient descent fetches its table of inner products, once a step and all at once."""
    few, many = (looks(shape, solver="adam", num_steps=steps, mgda=mgda) for steps in (2, 9))
    assert few == many


@pytest.mark.parametrize("shape", SHAPES)
def test_the_closed_form_asks_for_a_number_of_numbers_that_does_not_grow(shape):
    assert 0 < looks(shape, solver="exact") < 60


def test_factorisations_are_in_float64_wherever_there_is_float64(monkeypatch):
    seen = set()
    real = torch.linalg.eigh
    monkeypatch.setattr(
        torch.linalg, "eigh", lambda matrix: seen.add((matrix.dtype, matrix.device.type)) or real(matrix)
    )
    merged(Dop(), *models(12, 40), solver="exact")
    assert seen == {(torch.float64, "cpu")}
    assert spectra.working_dtype(torch.device("cuda")) == torch.float64
