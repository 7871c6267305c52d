"""Pairing by hand, of images as tensors."""

import torch

from fedleak.evaluation import images, pairing
from fedleak.modalities.find import measure


def test_images_are_paired_as_a_batch_of_them_is():
    truth = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    rebuilt = truth[[3, 0, 4, 1]] * 0.9
    assert images.pair(rebuilt, truth) == [1, 3, None, 0, 2]
    assert images.pair(rebuilt, truth) == pairing.pair(measure("image"), {"images": rebuilt}, {"images": truth})
