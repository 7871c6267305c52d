import pytest
import torch

from fedleak.attacks.images.priors import total_variation


def test_by_hand():
    image = torch.tensor([[[[0.0, 1.0, 1.0], [0.5, 0.5, 1.0]]]])
    # Across: 1, 0, 0, 0.5 over four pairs; down: 0.5, 0.5, 0 over three.
    assert float(total_variation(image)) == pytest.approx(1.5 / 4 + 1.0 / 3)


def test_flat_images_have_none_however_bright():
    assert float(total_variation(torch.full((2, 3, 5, 4), 0.7))) == 0


def test_is_a_mean_over_images_and_channels():
    images = torch.rand(4, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    single = torch.stack([total_variation(image[None, None]) for batch in images for image in batch])
    assert float(total_variation(images)) == pytest.approx(float(single.mean()), rel=1e-6)


def test_is_blind_to_signs_and_scales_with_contrast():
    images = torch.rand(1, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    assert float(total_variation(1 - images)) == pytest.approx(float(total_variation(images)), rel=1e-6)
    assert float(total_variation(0.5 * images)) == pytest.approx(0.5 * float(total_variation(images)), rel=1e-6)
