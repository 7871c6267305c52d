import pytest
import torch

from fedleak.attacks.exact.zero_sets import RowSpace, refit, zero_set

SIZE, OUTPUTS, FEATURES = 6, 40, 80


def layer(noise, seed=0):
    """Return features behind a ReLU, derivatives, their layer's gradients, and both with relative noise."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    h, d = (normal(SIZE, FEATURES) + 0.3 * normal(FEATURES)).relu(), normal(SIZE, OUTPUTS)
    return h, d, d.mT @ h, d.sum(0), h + noise * normal(*h.shape), d + noise * normal(*d.shape)


@pytest.mark.parametrize("noise", [1e-5, 1e-3, 1e-2])
def test_noisy_features_and_derivatives_become_exact(noise):
    h, d, weight_gradient, bias_gradient, noisy_h, noisy_d = layer(noise)
    features, derivatives = refit(noisy_h, noisy_d, weight_gradient, bias_gradient)
    torch.testing.assert_close(features, h, atol=1e-9, rtol=0)
    torch.testing.assert_close(derivatives, d, atol=1e-9, rtol=0)


def test_float32_gradients_leave_float32_errors():
    h, d, weight_gradient, bias_gradient, noisy_h, noisy_d = layer(1e-3, seed=1)
    features, _ = refit(noisy_h, noisy_d, weight_gradient.float().double(), bias_gradient.float().double())
    assert float((features - h).norm() / h.norm()) < 1e-6


def test_where_nothing_is_zero_the_estimates_stay():
    h, d, *_ = layer(0)
    h = h + 1
    features, derivatives = refit(h, d, d.mT @ h, d.sum(0))
    assert features is h
    assert derivatives is d


def test_two_samples_that_come_out_alike_leave_the_estimates():
    _, _, weight_gradient, bias_gradient, noisy_h, noisy_d = layer(1e-4)
    noisy_h[1] = noisy_h[0]
    assert refit(noisy_h, noisy_d, weight_gradient, bias_gradient)[0] is noisy_h


def test_a_random_direction_has_no_zero_set():
    _, _, weight_gradient, bias_gradient, *_ = layer(0)
    space = RowSpace.of(weight_gradient, bias_gradient, SIZE, 1.0)
    assert zero_set(space, torch.ones(SIZE, dtype=torch.float64)) is None
