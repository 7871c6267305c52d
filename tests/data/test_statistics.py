import numpy as np
import pytest
import torch

from fedleak.data.base import ImageSet
from fedleak.data.statistics import MEASURED, channel_statistics, evenly_spaced


class Stripes(ImageSet):
    """Image i is constant: (i mod 4) / 4 in red, 0.25 in green, 0 in blue."""

    def __init__(self, count):
        self.labels = np.zeros(count, dtype=np.int64)
        self.read = []

    def load(self, indices):
        self.read += list(indices)
        images = torch.zeros(len(indices), 3, 2, 2)
        images[:, 0] = torch.tensor([index % 4 / 4 for index in indices]).view(-1, 1, 1)
        images[:, 1] = 0.25
        return images


def test_statistics_over_several_chunks():
    mean, std = channel_statistics(Stripes(600))
    assert mean == pytest.approx((0.375, 0.25, 0.0), abs=1e-9)
    assert std[0] == pytest.approx(np.std([0, 0.25, 0.5, 0.75]), abs=1e-9)
    assert min(std) > 0


def test_at_most_so_many_images_are_read():
    public = Stripes(5 * MEASURED)
    channel_statistics(public)
    assert len(public.read) == MEASURED


@pytest.mark.parametrize(("length", "at_most"), [(1, 5), (7, 3), (100, 100), (1001, 1000)])
def test_evenly_spaced(length, at_most):
    chosen = evenly_spaced(length, at_most)
    assert len(chosen) == len(set(chosen)) == min(length, at_most)
    assert chosen == sorted(chosen)
    assert chosen[0] == 0
    assert length == 1 or chosen[-1] == length - 1
    gaps = np.diff(chosen)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
