"""How many singular values hold a share of the energy. Run: python -m pytest tests/test_linalg_spectra.py"""

import pytest
import torch

from dopkit.linalg import spectra
from dopkit.linalg.spectra import (
    SMALL,
    Leading,
    column_blocks,
    energy_rank,
    leading_directions,
    triplets,
    working_dtype,
)

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


@pytest.mark.parametrize("thin", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("epsilon", "rank"), [(0.39, 1), (0.69, 2), (0.85, 3), (0.95, 4)])
def test_leading_directions_are_those_of_the_singular_value_decomposition(epsilon, rank, thin):
    matrix = matrix_with([4.0, 3.0, 2.0, 1.0, 0.0], 7)
    product = matrix @ matrix.mT
    leading = leading_directions(product, epsilon, thin=thin)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    assert leading.rank == rank
    assert (leading.kept is not None) == (rank <= thin * 5)
    assert_it_projects(leading, matrix, u[:, :rank])
    rows = leading.reduced(matrix)
    torch.testing.assert_close(rows.mT @ rows, (vh[:rank].mT * s[:rank] ** 2) @ vh[:rank])


def assert_it_projects(leading, matrix, kept, tolerance=1e-12):
    """P = U U^T, as every method of Leading has it."""
    projector = kept @ kept.mT
    want = projector @ (matrix @ matrix.mT) @ projector
    close = {"rtol": 0, "atol": tolerance * float(matrix.norm() ** 2)}
    torch.testing.assert_close(leading.energy(matrix @ matrix.mT), want, **close)
    torch.testing.assert_close(leading.expanded(leading.reduced(matrix)), projector @ matrix, **close)
    torch.testing.assert_close(leading.projected_rows(matrix.mT), matrix.mT @ projector, **close)


@pytest.mark.parametrize("epsilon", [1.0, 0.99999999])
def test_nothing_is_projected_when_all_that_has_energy_is_kept(epsilon):
    matrix = matrix_with([2.0, 1.0, 0.0], 5)
    product = matrix @ matrix.mT
    leading = leading_directions(product, epsilon)
    assert leading.rank == 2
    assert leading.kept is leading.left_out is None
    assert leading.energy(product) is product
    assert leading.reduced(matrix) is matrix


def spectrum(kind, size):
    """Singular values with little, nothing or much at their end."""
    values = torch.linspace(2, 1, size, dtype=torch.float64)
    if kind == "apart":
        values[-3:] = torch.tensor([3e-4, 2e-4, 1e-4])
    elif kind == "with zeros":
        values[size // 2 :] = 0
        values[size // 2 - 2 : size // 2] = torch.tensor([2e-4, 1e-4])
    elif kind == "crowded":  # nowhere a gap at the end
        values[-100:] = torch.linspace(3e-4, 1e-4, 100, dtype=torch.float64)
    elif kind == "steep":
        values = torch.logspace(0, -7, size, dtype=torch.float64)
    return values.tolist()


@pytest.mark.parametrize("rule", ["at-least", "below"])
@pytest.mark.parametrize("kind", ["level", "apart", "with zeros", "crowded", "steep"])
def test_large_matrices_are_projected_the_same_however_it_is_found(kind, rule):
    """Past the size from which eigenvectors are found only where they are needed, and as few as are needed."""
    size, epsilon = SMALL + 4, 1 - 1e-5
    matrix = matrix_with(spectrum(kind, size), size + 3)
    u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
    s = torch.where(s > 2e-7 * s[0], s, 0)  # a Gram matrix says no more
    rank = energy_rank(s, epsilon, rule)
    leading = leading_directions(matrix @ matrix.mT, epsilon, rule)
    assert leading.rank == rank
    if rank == int(s.count_nonzero()):
        assert_it_projects(
            leading, matrix, torch.eye(size, dtype=torch.float64) if leading.kept is None else u[:, :rank]
        )
    else:  # neighbours can be told apart no better than their distance allows, and that of their squares
        assert_it_projects(leading, matrix, u[:, :rank], 1e-7 if kind == "steep" else 1e-9)


def test_a_spectrum_of_which_nothing_can_be_left_out_is_not_looked_at(monkeypatch):
    monkeypatch.setattr(torch.linalg, "eigh", None)
    monkeypatch.setattr(torch.linalg, "eigvalsh", None)
    matrix = matrix_with(spectrum("level", 300), 400)
    assert leading_directions(matrix @ matrix.mT, 0.99999) == Leading(300)
    with pytest.raises(TypeError):
        leading_directions(matrix @ matrix.mT, 0.99)


def test_a_few_directions_are_found_without_the_others(monkeypatch):
    monkeypatch.setattr(spectra, "SMALL", 10)
    whole = []
    real = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: whole.append(matrix.shape[0]) or real(matrix))
    matrix = matrix_with(spectrum("apart", 300), 400)
    leading = leading_directions(matrix @ matrix.mT, 0.99999)
    assert leading.left_out is not None
    assert max(whole) < 20


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
    assert leading.reduced(torch.zeros(3, 4, dtype=torch.float64)).count_nonzero() == 0


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
