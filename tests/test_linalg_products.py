"""Gram matrices by strips against the whole product. Run: python -m pytest tests/test_linalg_products.py"""

import pytest
import torch

from dopkit.linalg.products import add_gram, gram, mirrored


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
