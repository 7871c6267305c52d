import pytest
import torch

from fedleak.attacks.exact.cholesky import block_cholesky, cholesky_solve, shifted_cholesky
from fedleak.errors import AttackError


def definite(size, seed=0):
    root = torch.randn(size, size + 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.mT


@pytest.mark.parametrize("size", [1, 192, 193, 500])
def test_block_factor_is_that_of_lapack(size):
    matrix = definite(size)
    factor, positive = block_cholesky(matrix.clone())
    assert positive
    torch.testing.assert_close(factor.tril(), torch.linalg.cholesky(matrix))


def test_an_indefinite_matrix_is_reported():
    matrix = definite(400)
    matrix[399, 399] = -1
    assert not block_cholesky(matrix)[1]


def test_shift_is_the_least_that_works():
    slightly_negative = torch.diag(torch.tensor([2.0, 1.0, -1e-7], dtype=torch.float64))
    factor = shifted_cholesky(slightly_negative.clone(), (1e-9, 1e-6, 1e-2)).tril()
    added = factor @ factor.mT - slightly_negative
    torch.testing.assert_close(added, 1e-6 * torch.eye(3, dtype=torch.float64), rtol=1e-5, atol=1e-12)


def test_solve_inverts():
    matrix = definite(300)
    right = torch.ones(300, 2, dtype=torch.float64)
    torch.testing.assert_close(matrix @ cholesky_solve(shifted_cholesky(matrix.clone(), (0.0,)), right), right)


def test_what_no_shift_repairs_is_an_attack_error():
    with pytest.raises(AttackError, match="not finite"):
        shifted_cholesky(torch.full((3, 3), float("nan")), (1e-6, 1e-3))
