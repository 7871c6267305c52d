import math

import pytest
import torch
from torch import Tensor

from fedleak.errors import AttackError
from fedleak.evaluation.images import pair
from fedleak.modalities.image.metrics import mse, mse_matrix


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.rand((count, 3, 8, 8), generator=torch.Generator().manual_seed(seed))


def grey(*levels: float) -> Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()


def test_a_permutation_is_undone():
    truth = noise(6)
    order = [3, 5, 0, 1, 4, 2]
    rebuilt = truth[order] + 0.1 * (noise(6, seed=1) - 0.5)
    assert pair(rebuilt, truth) == [order.index(index) for index in range(6)]


def test_the_pairing_does_not_depend_on_the_order_of_the_reconstructions():
    truth, rebuilt = noise(5), noise(5, seed=1)
    order = [4, 2, 0, 1, 3]
    straight, shuffled = pair(rebuilt, truth), pair(rebuilt[order], truth)
    assert [order[index] for index in shuffled] == straight


def test_the_total_is_least_not_each_choice_greedily():
    truth, rebuilt = grey(0.4, 0.0), grey(0.3, 0.9)
    # Truth 0 is nearer to reconstruction 0: 0.01 + 0.81 = 0.82 straight, 0.25 + 0.09 = 0.34 crossed.
    assert pair(rebuilt, truth) == [1, 0]


def test_fewer_reconstructions_than_images():
    assert pair(grey(0.9), grey(0.1, 0.8, 0.5)) == [None, 0, None]


def test_more_reconstructions_than_images():
    assert pair(grey(0.5, 0.1, 0.9), grey(0.88, 0.1)) == [2, 1]


def test_no_reconstruction_at_all():
    assert pair(noise(0), noise(2)) == [None, None]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_reconstructions_are_assigned_to_no_one(bad):
    rebuilt = grey(0.0, 0.5, 1.0)
    rebuilt[0, 2, 7, 7] = bad
    assert pair(rebuilt, grey(0.0, 1.0, 0.5)) == [None, 2, 1]


def test_distances_are_of_clamped_pixels():
    assert pair(grey(0.4, -3.0), grey(0.0, 0.5)) == [1, 0]
    assert mse_matrix(grey(5.0), grey(1.0)).tolist() == [[0.0]]


def test_the_matrix_holds_the_metric():
    a, b = noise(3), noise(4, seed=1)
    matrix = mse_matrix(a, b)
    expected = torch.stack([mse(a[row].expand_as(b), b) for row in range(3)])
    assert matrix.shape == (3, 4)
    torch.testing.assert_close(matrix, expected)


def test_shapes_must_agree():
    with pytest.raises(AttackError, match=r"\(3, 8, 8\)"):
        pair(torch.zeros(1, 1, 8, 8), noise(1))
