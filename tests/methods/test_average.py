"""Laws of averaging. Run: python -m pytest tests/methods/test_average.py"""

import pytest
import torch

from dopkit.methods.average import Half, Mean
from dopkit.methods.fold import Context
from dopkit.methods.parameters import AverageParameters
from dopkit.roles import Role


def folded(method, models):
    def context(step):
        return Context(AverageParameters(), Role.NORM, step)

    fold = method()
    state = fold.start(None, models[0].clone(), context(1))
    for step, model in enumerate(models[1:], start=2):
        state = fold.step(state, model.clone(), context(step))
    return fold.finish(state, context(len(models)))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_mean_by_hand():
    models = [torch.tensor([1.0, 4.0]), torch.tensor([3.0, 0.0]), torch.tensor([8.0, 2.0])]
    assert folded(Mean, models).tolist() == [4.0, 2.0]


def test_half_by_hand():
    """Weights 1/4, 1/4, 1/2: the reference's treatment favours the last model."""
    models = [torch.tensor([1.0, 4.0]), torch.tensor([3.0, 0.0]), torch.tensor([8.0, 2.0])]
    assert folded(Half, models).tolist() == [5.0, 2.0]


@pytest.mark.parametrize("method", [Mean, Half])
def test_one_model_is_that_model(method):
    model = normal(5, 3)
    assert torch.equal(folded(method, [model]), model)


@pytest.mark.parametrize("method", [Mean, Half])
def test_copies_of_one_model_are_that_model_bit_for_bit(method):
    model = normal(33, 7) * 1e-3
    assert torch.equal(folded(method, [model] * 7), model)


@pytest.mark.parametrize("count", [2, 3, 20])
def test_mean_gives_every_model_the_same_say(count):
    models = [normal(40, 30, seed=seed) for seed in range(count)]
    want = torch.stack(models).double().mean(0)
    assert float((folded(Mean, models).double() - want).abs().max()) < 4e-7


@pytest.mark.parametrize("method", [Mean, Half])
@pytest.mark.parametrize("cut", [1, 3, 8, 17, 64, 101])
def test_blocks_give_the_bytes_of_the_whole(method, cut):
    models = [normal(1009, seed=seed) for seed in range(4)]
    whole = folded(method, models)
    blocks = [folded(method, list(parts)) for parts in zip(*(model.split(cut) for model in models), strict=True)]
    assert torch.equal(torch.cat(blocks), whole)
