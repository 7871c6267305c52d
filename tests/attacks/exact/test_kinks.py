import pytest
import torch
from torch import nn

from fedleak.attacks.exact.activations import preimage
from fedleak.attacks.exact.kinks import repair_kinks


def layer(module, errors, seed=0):
    """Return true input, noisy output, upper derivative and bias gradient; ``errors`` are (channel, place, z, noise)."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(3, 40, dtype=torch.float64, generator=generator)
    z = z.sign() * (z.abs() + 0.01)
    noise = 1e-6 * torch.randn(z.shape, dtype=torch.float64, generator=generator)
    for channel, place, value, error in errors:
        z[channel, place], noise[channel, place] = value, error
    delta = torch.randn(z.shape, dtype=torch.float64, generator=generator)
    slope = torch.autograd.functional.jvp(module, z, torch.ones_like(z))[1]
    return z, module(z) + noise, delta, slope, (delta * slope).sum(1)


@pytest.mark.parametrize("module", [nn.LeakyReLU(0.01), nn.ReLU()], ids=["leaky", "relu"])
@pytest.mark.parametrize("errors", [[(1, 5, 1e-6, -2e-6)], [(0, 5, 2e-6, -3e-6), (0, 9, 1e-6, -2e-6), (2, 0, 1e-6, -2e-6)]])
def test_wrong_sides_are_put_right(module, errors):
    z, h, delta, slope, sums = layer(module, errors)
    wrong = preimage(module, h)
    assert int((wrong.slope != slope).sum()) == len(errors)
    right = repair_kinks(module, wrong, h, delta, sums)
    assert torch.equal(right.slope, slope)
    assert torch.equal(right.weight, slope)
    known = right.weight > 0
    torch.testing.assert_close(right.z[known], z[known], rtol=0, atol=1e-3)


def test_a_mismatch_that_no_doubtful_input_explains_changes_nothing():
    module = nn.LeakyReLU(0.01)
    _, h, delta, slope, sums = layer(module, [(1, 5, 1e-6, 0.0)])
    sums[1] += 0.37
    assert torch.equal(repair_kinks(module, preimage(module, h), h, delta, sums).slope, slope)


def test_smooth_activations_have_no_kink():
    back = preimage(nn.Tanh(), torch.full((1, 3), 0.1, dtype=torch.float64))
    assert repair_kinks(nn.Tanh(), back, back.z, back.z, torch.ones(1, dtype=torch.float64)) is back
