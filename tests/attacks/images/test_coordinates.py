import numpy as np
import pytest
import torch
from scipy.fft import dctn

from fedleak.attacks.images.coordinates import FrequencyCoordinates, PixelCoordinates, dct_matrix
from fedleak.data.samples import Samples
from fedleak.modalities.image import InputSpec
from fedleak.scenario.schema import Data

LIKE = torch.zeros((), dtype=torch.float64)


def spec(*shape):
    channels = shape[0]
    return InputSpec(shape, 10, tuple(0.4 + 0.05 * c for c in range(channels)), tuple(0.2 + 0.03 * c for c in range(channels)))


def pixels(*shape, count=2):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_dct_matrix_is_orthonormal(size):
    matrix = dct_matrix(size)
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 8), (5, 12)])
def test_dct_is_scipys(shape):
    image = pixels(*shape, count=1)[0]
    mine = dct_matrix(shape[0]) @ image @ dct_matrix(shape[1]).T
    assert np.allclose(mine.numpy(), dctn(image.numpy(), type=2, norm="ortho"), atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 9, 14), (1, 28, 28), (4, 8, 8)])
@pytest.mark.parametrize("kind", ["pixel", "frequency"])
def test_decode_and_encode_are_inverse(kind, shape):
    coordinates = PixelCoordinates(spec(*shape)) if kind == "pixel" else FrequencyCoordinates(spec(*shape), LIKE)
    image = pixels(*shape)
    assert torch.allclose(coordinates.decode(coordinates.encode(image)), image, atol=1e-10)
    variables = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(coordinates.encode(coordinates.decode(variables)), variables, atol=1e-10)


def test_pixels_are_model_inputs():
    input = spec(3, 8, 8)
    image = pixels(3, 8, 8)
    expected = torch.stack([(image[:, c] - input.mean[c]) / input.std[c] for c in range(3)], dim=1)
    assert torch.allclose(PixelCoordinates(input).encode(image), expected)


def test_zero_frequencies_are_mid_grey_and_the_first_is_luminance():
    coordinates = FrequencyCoordinates(spec(3, 8, 8), LIKE)
    variables = torch.zeros(1, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(coordinates.decode(variables), torch.full_like(variables, 0.5))
    variables[0, 0, 0, 0] = 0.5
    image = coordinates.decode(variables)
    assert torch.allclose(image, image.mean().expand_as(image))
    assert float(image.mean()) > 0.5


def test_frequencies_of_a_grey_image_have_no_colour():
    grey = pixels(1, 16, 16).expand(-1, 3, -1, -1)
    variables = FrequencyCoordinates(spec(3, 16, 16), LIKE).encode(grey)
    assert float(variables[:, 1:].abs().max()) < 1e-9


def test_natural_images_are_about_standard_normal_at_all_frequencies():
    images = Samples(Data()).train.load(range(20)).double()
    variables = FrequencyCoordinates(spec(3, 32, 32), LIKE).encode(images)
    radius = (torch.arange(32)[:, None].square() + torch.arange(32)[None].square()).sqrt()
    for low, high in ((1, 4), (4, 12), (12, 32)):
        band = variables[..., (radius >= low) & (radius < high)]
        assert 0.2 < float(band.square().mean().sqrt()) < 3


def test_precision_follows_like():
    assert FrequencyCoordinates(spec(3, 8, 8), torch.zeros(())).decode(torch.zeros(1, 3, 8, 8)).dtype == torch.float32
