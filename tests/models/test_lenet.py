import pytest
import torch

from fedleak.modalities.image import InputSpec


def test_size(build, size):
    assert size(build("lenet")) == 3 * 12 * 25 + 12 + 3 * (12 * 12 * 25 + 12) + 768 * 10 + 10


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 33, 21), (3, 64, 64), (3, 5, 5)])
def test_lenet_takes_any_size(build, shape):
    assert build("lenet", InputSpec(shape, 10))(torch.rand(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize(
    ("parameters", "uniform"),
    [
        ({}, True),
        ({"activation": "relu"}, False),
        ({"activation": "tanh"}, False),
        ({"activation": "relu", "init": "uniform"}, True),
        ({"init": "default"}, False),
    ],
)
def test_lenet_initialisation(build, parameters, uniform):
    # PyTorch's own bound for the last layer is 768 ** -0.5 = 0.036.
    fc = build("lenet", **parameters).fc
    assert (fc.weight.abs().max() > 0.45) == uniform
    assert fc.weight.abs().max() <= 0.5
    assert (fc.bias.abs().max() > 0.04) == uniform
    assert abs(fc.weight.mean()) < 0.02


def test_lenet_without_bias(build):
    assert not [name for name, _ in build("lenet", bias=False).named_parameters() if name.endswith("bias")]
