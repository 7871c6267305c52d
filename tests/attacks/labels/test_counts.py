import itertools

import pytest
import torch

from fedleak.attacks.labels.counts import labels_by_impact, labels_from_counts


def test_whole_counts_are_kept():
    assert labels_from_counts(torch.tensor([2.0, 0.0, 1.0]), 3) == (0, 0, 2)


def test_negative_counts_become_zero_and_the_rest_shares_the_sum():
    # Cutting at zero and rounding would give 3 + 2 = 5 labels for 4 images.
    assert labels_from_counts(torch.tensor([2.6, 1.9, -0.5]), 4) == (0, 0, 1, 1)


def test_a_sum_that_is_too_small_is_filled_where_most_is_missing():
    assert labels_from_counts(torch.tensor([0.1, 0.6, 0.4]), 3) == (0, 1, 2)


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_the_nearest_of_all(seed):
    estimate = 3 * torch.randn(4, generator=torch.Generator().manual_seed(seed)).double() + 1
    grid = [counts for counts in itertools.product(range(6), repeat=4) if sum(counts) == 5]
    distances = [float((estimate - torch.tensor(counts)).square().sum()) for counts in grid]
    found = torch.bincount(torch.tensor(labels_from_counts(estimate, 5)), minlength=4)
    assert float((estimate - found).square().sum()) == pytest.approx(min(distances))


def test_present_classes_come_once_and_the_lowest_signal_again():
    signal = torch.tensor([-0.7, -0.2, 0.1])
    assert labels_by_impact(signal, -0.3, 3, signal < 0) == (0, 0, 1)
    assert signal.tolist() == pytest.approx([-0.7, -0.2, 0.1])


def test_more_present_classes_than_images_keep_the_lowest():
    signal = torch.tensor([-0.1, -0.3, -0.2])
    assert labels_by_impact(signal, -0.3, 2, signal < 0) == (1, 2)
