"""How many singular values hold a share of the energy. Run: python -m pytest tests/test_linalg_spectra.py"""

import pytest
import torch

from dopkit.linalg.spectra import column_blocks, energy_rank, leading_directions, triplets, working_dtype

FOUR = torch.tensor([4.0, 3.0, 2.0, 1.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("epsilon", "rule", "rank"),
    [
        (0.7, "at-least", 2),
        (0.7, "below", 1),
        (1.0, "at-least", 4),
        (1.0, "below", 3),
        (0.71, "at-least", 3),
        (0.71, "below", 2),
        (0.1, "at-least", 1),
        (0.1, "below", 0),
    ],
)
def test_rank_of_a_known_spectrum(dtype, epsilon, rule, rank):
    assert energy_rank(FOUR.to(dtype), epsilon, rule) == rank


@pytest.mark.parametrize(
    ("values", "epsilon", "at_least", "below"),
    [
        ([0.0, 0.0], 0.5, 0, 0),
        ([], 0.5, 0, 0),
        ([5.0], 0.99999, 1, 0),
        ([5.0, 0.0, 0.0], 1.0, 1, 0),
        ([1.0] * 10, 0.35, 4, 3),
    ],
)
def test_rank_of_special_spectra(values, epsilon, at_least, below):
    values = torch.tensor(values, dtype=torch.float64)
    assert energy_rank(values, epsilon) == at_least
    assert energy_rank(values, epsilon, "below") == below


def test_rank_at_full_energy_ignores_rounding():
    """Partial sums of equal thirds do not add up to the rounded total; the last one still counts as all."""
    values = torch.full((1000,), 1 / 3)
    assert energy_rank(values, 1.0) == 1000


def matrix_with(values, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = len(values)
    left = torch.linalg.qr(torch.randn(rows, rows, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, rows, generator=generator, dtype=torch.float64)).Q
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right.mT


@pytest.mark.parametrize(("epsilon", "rank"), [(0.39, 1), (0.69, 2), (0.95, 4)])
def test_leading_directions_are_those_of_the_singular_value_decomposition(epsilon, rank):
    matrix = matrix_with([4.0, 3.0, 2.0, 1.0], 7)
    gram = matrix @ matrix.mT
    leading = leading_directions(gram, epsilon)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert leading.rank == rank
    torch.testing.assert_close(leading.values, s[:rank])
    torch.testing.assert_close(leading.energy(gram), (u[:, :rank] * s[:rank] ** 2) @ u[:, :rank].mT)
    rows = leading.project(matrix)
    torch.testing.assert_close(rows.mT @ rows, (vh[:rank].mT * s[:rank] ** 2) @ vh[:rank])


@pytest.mark.parametrize("epsilon", [1.0, 0.99999999])
def test_nothing_is_projected_when_all_that_has_energy_is_kept(epsilon):
    matrix = matrix_with([2.0, 1.0, 0.0], 5)
    gram = matrix @ matrix.mT
    leading = leading_directions(gram, epsilon)
    assert leading.rank == 2
    assert leading.vectors is None
    assert leading.energy(gram) is gram
    assert leading.project(matrix) is matrix
    with pytest.raises(ValueError, match="Gram matrix itself"):
        leading.energy()


def test_rounding_errors_of_a_rank_one_matrix_hold_no_energy():
    """Hundreds of eigenvalues near eps, whose square roots add up to more than 1 - 0.99999, count as zero."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.outer(*torch.randn(2, 400, generator=generator, dtype=torch.float64))
    gram = matrix @ matrix.mT
    assert leading_directions(gram, 0.99999).rank == 1
    assert leading_directions(gram, 1.0).rank == 1
    assert leading_directions(gram, 0.99999, "below").rank == 0


@pytest.mark.parametrize("rule", ["at-least", "below"])
@pytest.mark.parametrize("epsilon", [0.5, 1.0])
def test_zero_matrix_has_rank_zero(epsilon, rule):
    leading = leading_directions(torch.zeros(3, 3, dtype=torch.float64), epsilon, rule)
    assert leading.rank == 0
    assert leading.project(torch.zeros(3, 4)).count_nonzero() == 0


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 10), (1 << 22, 5), (4, 3_000_001)])
def test_column_blocks_cover_every_column_once(rows, columns):
    blocks = list(column_blocks(rows, columns))
    assert blocks[0].start == 0
    assert blocks[-1].stop == columns
    assert all(left.stop == right.start for left, right in zip(blocks, blocks[1:], strict=False))
    assert all(block.stop > block.start for block in blocks)


def test_working_dtype_is_the_best_the_device_has():
    assert working_dtype(torch.device("cpu")) is torch.float64
    assert working_dtype(torch.device("cuda")) is torch.float64
    assert working_dtype(torch.device("mps")) is torch.float32


@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (9, 4)])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_triplets_are_those_that_can_be_told_from_zero(shape, rank):
    generator = torch.Generator().manual_seed(1)
    one, other = (torch.randn(side, rank, generator=generator, dtype=torch.float64) for side in shape)
    matrix = one @ other.mT
    found = triplets(matrix)
    assert found.left.shape == (shape[0], rank)
    assert found.right.shape == (rank, shape[1])
    torch.testing.assert_close(found.values, torch.linalg.svdvals(matrix)[:rank])
    torch.testing.assert_close((found.left * found.values) @ found.right, matrix)
    for vectors in (found.left.mT, found.right):
        torch.testing.assert_close(vectors @ vectors.mT, torch.eye(rank, dtype=torch.float64))


def test_triplets_of_nothing():
    for shape in ((0, 4), (4, 0), (3, 2)):
        found = triplets(torch.zeros(shape, dtype=torch.float64))
        assert (found.left.shape, found.values.shape, found.right.shape) == ((shape[0], 0), (0,), (0, shape[1]))
