"""Products of two factors against the matrices that they are."""

from __future__ import annotations

import pytest
import torch

from dopkit.linalg.factors import Factors, shortened, span, split


def product(rows: int, columns: int, rank: int, seed: int) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return Factors(torch.randn(rows, rank, generator=generator), torch.randn(rank, columns, generator=generator))


def whole(one: Factors) -> torch.Tensor:
    return one.b.double() @ one.a.double()


@pytest.mark.parametrize("ranks", [(3, 2), (1, 1, 4), (0, 3), (9, 9)])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (6, 6), (1, 8)])
def test_the_small_matrices_are_the_products(shape: tuple[int, int], ranks: tuple[int, ...]) -> None:
    products = [product(*shape, rank, seed) for seed, rank in enumerate(ranks)]
    space = span(products)
    assert space.matrices[0].shape == tuple(min(side, sum(ranks)) for side in shape)
    for basis in (space.left, space.right):
        torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1], dtype=torch.float64))
    for one, small in zip(products, space.matrices, strict=True):
        torch.testing.assert_close(space.left @ small @ space.right.mT, whole(one), rtol=0, atol=1e-12)
        assert one.squares() == pytest.approx(float(whole(one).square().sum()))
        own = torch.linalg.svdvals(whole(one))
        torch.testing.assert_close(torch.linalg.svdvals(small), own[: min(small.shape)], rtol=0, atol=1e-12)


def test_split_keeps_the_largest_singular_values() -> None:
    one = product(10, 14, 6, 0)
    u, values, v = torch.linalg.svd(whole(one), full_matrices=False)
    for rank in (1, 4, 6):
        short, cut = shortened(one, rank)
        assert short.rank == rank
        assert (short.b.dtype, short.a.dtype) == (torch.float32, torch.float32)
        nearest = (u[:, :rank] * values[:rank]) @ v[:rank]
        torch.testing.assert_close(whole(short), nearest, rtol=0, atol=1e-6 * float(values[0]))
        assert cut.energy == pytest.approx(float(values.square().sum()))
        assert cut.lost == pytest.approx(float(values[rank:].square().sum()), abs=1e-10)
    again, cut = split(space := span([one]), space.matrices[0])
    torch.testing.assert_close(whole(again), whole(one), rtol=0, atol=1e-6 * float(values[0]))
    assert (again.rank, cut.lost) == (6, 0.0)


def test_times_a_number() -> None:
    one = product(4, 5, 2, 0)
    assert one.scaled(1) is one
    torch.testing.assert_close(whole(one.scaled(-2)), -2 * whole(one))
