"""Float32 products stay float32. Run: python -m pytest tests/test_linalg_precision.py"""

import pytest
import torch

from dopkit.linalg.precision import full_float32


@pytest.fixture(params=["highest", "high", "medium"])
def asked(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def test_products_are_full_within_and_as_asked_after(asked):
    with full_float32():
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32
        with full_float32():
            pass
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == asked
    assert torch.backends.cuda.matmul.allow_tf32 == (asked != "highest")


def test_an_error_leaves_it_as_asked(asked):
    with pytest.raises(RuntimeError, match="within"), full_float32():
        raise RuntimeError("within")
    assert torch.get_float32_matmul_precision() == asked
