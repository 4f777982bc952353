"""A X + X B = R against dense solves. Run: python -m pytest tests/test_linalg_sylvester.py"""

import pytest
import torch

from dopkit.linalg.sylvester import Eigen, curved, eigen, eigen_of_rows, solve


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def semidefinite(size, rank, seed):
    factor = normal(size, rank, seed=seed)
    return factor @ factor.mT


def kronecker_solution(left, right, rhs):
    """The shortest least-squares solution of the dense system (A (x) I + I (x) B) vec X = vec R."""
    rows, columns = rhs.shape
    eye = torch.eye
    system = torch.kron(left, eye(columns, dtype=rhs.dtype)) + torch.kron(eye(rows, dtype=rhs.dtype), right)
    return (torch.linalg.pinv(system, rtol=1e-11) @ rhs.reshape(-1)).reshape(rows, columns)


def test_two_by_two_by_hand():
    """A = diag(1, 3), B = diag(1, 0): denominators 2, 1 / 4, 3."""
    left, right = eigen(torch.diag(torch.tensor([1.0, 3.0]))), eigen(torch.diag(torch.tensor([1.0, 0.0])))
    rhs = torch.tensor([[2.0, 5.0], [8.0, 6.0]])
    torch.testing.assert_close(solve(left, right, rhs), torch.tensor([[1.0, 5.0], [2.0, 2.0]]))


def test_flat_directions_stay_at_zero():
    """A = diag(1, 0), B = diag(0, 2): nothing is said about the entry at (1, 0), whatever R has there."""
    left, right = eigen(torch.diag(torch.tensor([1.0, 0.0]))), eigen(torch.diag(torch.tensor([0.0, 2.0])))
    rhs = torch.tensor([[1.0, 3.0], [7.0, 4.0]])
    torch.testing.assert_close(solve(left, right, rhs), torch.tensor([[1.0, 1.0], [0.0, 2.0]]))


@pytest.mark.parametrize(("rows", "columns"), [(4, 6), (5, 5), (3, 8)])
@pytest.mark.parametrize(("left_rank", "right_rank"), [(9, 9), (2, 3), (1, 9), (9, 1)])
def test_dense_kronecker_solve(rows, columns, left_rank, right_rank):
    left, right = semidefinite(rows, left_rank, 1), semidefinite(columns, right_rank, 2)
    rhs = left @ normal(rows, columns, seed=3) + normal(rows, columns, seed=4) @ right
    found = solve(eigen(left), eigen(right), rhs)
    torch.testing.assert_close(found, kronecker_solution(left, right, rhs), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_rows_give_the_same_solution_as_the_matrix(rank):
    left, rows = semidefinite(4, 2, 1), normal(rank, 6, seed=2)
    right = rows.mT @ rows
    rhs = left @ normal(4, 6, seed=3) + normal(4, 6, seed=4) @ right
    found = solve(eigen(left), eigen_of_rows(rows), rhs)
    torch.testing.assert_close(found, kronecker_solution(left, right, rhs), rtol=1e-7, atol=1e-7)


def test_coordinates_on_a_skew_basis_give_the_same_solution():
    """X = Y T: solved for Y with the Gram matrix G of T, without a matrix of T's width."""
    basis = normal(5, 40, seed=5)
    gram = basis @ basis.mT
    rows = normal(3, 5, seed=6)  # coordinates of N
    left, coordinates = semidefinite(4, 4, 1), normal(4, 5, seed=7)
    right = (rows @ basis).mT @ (rows @ basis)
    want = coordinates @ basis
    rhs = left @ coordinates + (coordinates @ gram @ rows.mT) @ rows
    values, mixing = curved(rows @ gram @ rows.mT)
    vectors = rows.mT @ (mixing / values.sqrt())
    found = solve(eigen(left), Eigen(values, vectors, gram @ vectors), rhs)
    torch.testing.assert_close(left @ want + want @ right, rhs @ basis)
    torch.testing.assert_close(found @ basis, want, rtol=1e-8, atol=1e-8)


def test_one_sided_equations():
    matrix, rhs = semidefinite(4, 2, 1), normal(4, 3, seed=2)
    torch.testing.assert_close(solve(eigen(matrix), None, rhs), torch.linalg.pinv(matrix, rtol=1e-11) @ rhs)
    rhs = rhs.mT.contiguous()
    kept = rhs.clone()
    torch.testing.assert_close(solve(None, eigen(matrix), rhs), rhs @ torch.linalg.pinv(matrix, rtol=1e-11))
    assert torch.equal(rhs, kept)


def test_zero_matrices_leave_everything_at_zero():
    rhs = normal(2, 3)
    zero = eigen(torch.zeros(2, 2, dtype=torch.float64))
    nothing = eigen_of_rows(torch.zeros(0, 3, dtype=torch.float64))
    assert solve(zero, nothing, rhs).count_nonzero() == 0
    assert solve(None, nothing, rhs).count_nonzero() == 0
    assert solve(None, None, rhs).count_nonzero() == 0
    assert rhs.count_nonzero() == 6


def test_left_matrix_must_be_complete():
    vectors = torch.eye(3, dtype=torch.float64)[:, :2]
    partial = Eigen(torch.ones(2, dtype=torch.float64), vectors, vectors)
    with pytest.raises(ValueError, match="all its eigenpairs"):
        solve(partial, None, normal(3, 3))


def test_float32_is_enough_for_a_well_conditioned_equation():
    left, right = semidefinite(3, 9, 1), semidefinite(4, 9, 2)
    rhs = normal(3, 4, seed=3)
    found = solve(eigen(left.float()), eigen(right.float()), rhs.float())
    torch.testing.assert_close(found.double(), kronecker_solution(left, right, rhs), rtol=1e-3, atol=1e-4)
