import numpy as np
import pytest
from PIL import Image

from fedleak.data.pixels import decode, fit, is_grey, to_channels, unfit, unit


def test_unit_divides_by_the_largest_value_of_the_type():
    assert unit(np.array([0, 51, 255], np.uint8)).tolist() == [0, np.float32(0.2), 1]
    assert unit(np.array([0, 65_535], np.uint16)).tolist() == [0, 1]
    assert unit(np.array([0.25], np.float32)).tolist() == [0.25]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_colour_as_grey_is_its_luma_and_grey_as_colour_three_times_the_same(dtype):
    random = np.random.default_rng(0)
    high = 1 if dtype is np.float32 else np.iinfo(dtype).max
    colour = (random.random((3, 5, 6)) * high).astype(dtype)
    grey = to_channels(colour, 1)
    assert (grey.shape, grey.dtype) == ((1, 5, 6), dtype)
    luma = 0.299 * colour[0].astype(float) + 0.587 * colour[1].astype(float) + 0.114 * colour[2].astype(float)
    assert np.abs(grey[0] - luma).max() <= (1e-6 if dtype is np.float32 else 1)
    assert all(np.array_equal(plane, grey[0]) for plane in to_channels(grey, 3))
    with_alpha = np.concatenate([colour, colour[:1]])
    assert np.array_equal(to_channels(with_alpha, 3), colour)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_all_types_are_fitted_alike(dtype, channels):
    bytes_ = np.random.default_rng(0).integers(0, 256, (channels, 20, 30), dtype=np.uint8)
    expected = fit(bytes_, 8).astype(float) / 255
    scale = {np.uint8: 1, np.uint16: 257, np.float32: 1 / 255}[dtype]
    fitted = fit((bytes_ * np.float64(scale)).astype(dtype), 8)
    assert (fitted.shape, fitted.dtype) == ((channels, 8, 8), dtype)
    assert np.abs(unit(fitted) - expected).max() < 2 / 255
    assert fit(bytes_, None) is bytes_


def test_a_palette_is_colour_and_black_and_white_is_grey():
    assert not is_grey(Image.new("P", (2, 2)))
    assert is_grey(Image.new("1", (2, 2)))
    assert decode(Image.new("1", (2, 2), 1), 1, None).tolist() == [[[255, 255], [255, 255]]]
    assert unfit(Image.new("RGB", (2, 2))) is None
