"""Gram matrices by strips and inner products by blocks against the whole product."""

import pytest
import torch

from dopkit.linalg.products import add_gram, gram, inner, mirrored


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (5, 3), (32, 7), (33, 40), (300, 20), (384, 5), (513, 9), (4, 0), (0, 4)]
)
def test_a_gram_matrix_is_the_product_and_symmetric(rows, columns, dtype):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows), dtype=dtype)
    found = gram(matrix)
    torch.testing.assert_close(found, matrix @ matrix.mT)
    assert torch.equal(found, found.mT)
    assert found.dtype == dtype


def test_a_view_may_be_turned():
    matrix = torch.randn(40, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(gram(matrix.mT), matrix.mT @ matrix)


def test_blocks_of_columns_add_up():
    matrix = torch.randn(300, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = torch.zeros(300, 300, dtype=torch.float64)
    for start in range(0, 50, 20):
        add_gram(total, matrix[:, start : start + 20])
    torch.testing.assert_close(mirrored(total), matrix @ matrix.mT)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (1100, 1000)], ids=["vector", "matrix", "blocks"])
def test_inner_products_are_added_up_in_float64(shape):
    generator = torch.Generator().manual_seed(3)
    one, other = (1 + torch.randn(shape, generator=generator) for _ in range(2))
    found = inner(one, other)
    expected = (one * other).double().sum()
    assert found.dtype is torch.float64 and abs(float(found - expected)) <= 1e-13 * one.numel()
    along = inner(one, other, -1)
    assert along.shape == (*shape[:-1], 1)
    torch.testing.assert_close(along.sum(), expected)
    turned = inner(one.mT, other.mT) if one.dim() > 1 else found
    torch.testing.assert_close(turned, found)
