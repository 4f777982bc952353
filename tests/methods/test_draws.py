"""Random numbers belong to an element: not to the block it is asked for in, nor to what was asked for before."""

from __future__ import annotations

import pytest
import torch

from dopkit.methods.draws import CHUNK, uniform
from dopkit.methods.fold import Context
from dopkit.methods.parameters import AverageParameters
from dopkit.roles import Role


def context(seed: int = 0, tensor: str = "w", model: str = "u/a", offset: int = 0) -> Context:
    return Context(AverageParameters(), Role.LINEAR, 1, seed=seed, tensor=tensor, model=model, offset=offset)


@pytest.mark.parametrize("rows", [1, 7, 1000, CHUNK // 8, CHUNK // 4 + 3])
def test_blocks_draw_what_the_whole_draws(rows: int) -> None:
    """In any order, over the ends of chunks."""
    height = 40 if rows < 8 else CHUNK  # small blocks of a small tensor, or two chunks
    whole = uniform(context(), (height, 3))
    starts = list(range(0, height, rows))
    for start in reversed(starts):
        block = min(rows, height - start)
        assert torch.equal(uniform(context(offset=3 * start), (block, 3)), whole[start : start + block])


def test_the_shape_does_not_matter() -> None:
    assert torch.equal(uniform(context(), (6, 5)).flatten(), uniform(context(), (30,)))
    assert uniform(context(), (0, 4)).shape == (0, 4)
    assert uniform(context(), ()).shape == ()


def test_seed_tensor_and_model_do() -> None:
    drawn = [context(), context(seed=1), context(tensor="v"), context(model="u/b"), context(tensor="w\0u/a", model="")]
    numbers = [uniform(one, (50,)) for one in drawn]
    assert len({tuple(one.tolist()) for one in numbers}) == len(drawn)


def test_neither_do_threads_or_other_draws() -> None:
    want = uniform(context(), (1000,))
    torch.manual_seed(5)
    torch.rand(7)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(uniform(context(), (1000,)), want)
    finally:
        torch.set_num_threads(threads)
    state = torch.get_rng_state()
    uniform(context(), (10,))
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's draws change


def test_they_are_uniform() -> None:
    """Mean 1/2 and variance 1/12, within five deviations; neighbouring chunks have nothing to do with each other."""
    numbers = uniform(context(), (3 * CHUNK,)).double()
    assert float(numbers.min()) >= 0 and float(numbers.max()) < 1
    assert float(numbers.mean()) == pytest.approx(0.5, abs=5 * (1 / 12 / numbers.numel()) ** 0.5)
    assert float(numbers.var()) == pytest.approx(1 / 12, rel=0.01)
    one, two, _ = numbers.split(CHUNK)
    assert abs(float(torch.corrcoef(torch.stack([one, two]))[0, 1])) < 5 / CHUNK**0.5


def test_they_are_float32_whatever_else_the_process_computes_in() -> None:
    usual = uniform(context(), (50,))
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(uniform(context(), (50,)), usual)
    finally:
        torch.set_default_dtype(torch.float32)
