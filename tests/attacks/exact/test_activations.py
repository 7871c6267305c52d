import pytest
import torch
from torch import nn

from fedleak.attacks.exact.activations import invertible, preimage

SMOOTH = [nn.Sigmoid(), nn.Tanh(), nn.LeakyReLU(0.2), nn.ELU(0.7), nn.Softplus(2.0)]


@pytest.mark.parametrize("module", SMOOTH, ids=lambda module: type(module).__name__)
def test_preimage_returns_input_and_autograd_slope(module):
    z = torch.linspace(-4, 4, 41, dtype=torch.float64).requires_grad_()
    h = module(z)
    (slope,) = torch.autograd.grad(h.sum(), z)
    back = preimage(module, h.detach())
    torch.testing.assert_close(back.z, z.detach(), atol=1e-9, rtol=0)
    # At exactly zero the kinked ones have two slopes.
    smooth = z.abs() > 1e-9
    torch.testing.assert_close(back.slope[smooth], slope[smooth])
    assert invertible(module)


def test_out_of_range_values_stay_finite():
    for module in SMOOTH:
        back = preimage(module, torch.tensor([-3.0, 0.0, 1.0, 5.0], dtype=torch.float64))
        assert torch.isfinite(back.z).all()
        assert (back.weight > 0).all()


def test_relu_takes_its_threshold_from_the_error_below_zero():
    back = preimage(nn.ReLU(), torch.tensor([1.0, 0.2, 2.5e-4, 3.5e-4, -1e-4], dtype=torch.float64))
    assert back.weight.tolist() == [1, 1, 0, 1, 0]
    assert back.z.tolist() == [1.0, 0.2, 0, 3.5e-4, 0]
    assert torch.equal(back.slope, back.weight)


def test_what_has_two_branches_is_not_invertible():
    assert not invertible(nn.GELU())
    assert not invertible(nn.SiLU())
    assert not invertible(nn.LeakyReLU(-0.1))
