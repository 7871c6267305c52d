import pytest
import torch
from torch import nn
from torch.nn import functional

from fedleak.attacks.base import Budget
from fedleak.attacks.exact.gauss_newton import BodyResiduals, fit, jacobian
from fedleak.attacks.exact.separation import Separation
from fedleak.attacks.images.coordinates import FrequencyCoordinates
from fedleak.modalities.image import InputSpec
from fedleak.models.inspect import execution_order
from fedleak.observation import observe

SPEC = InputSpec((3, 8, 8), 10, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))


def case():
    """Return residuals with the true features given, and the images, of a small chain with BatchNorm."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Sigmoid(), nn.Conv2d(6, 6, 3, 1, 1), nn.Tanh(), nn.Flatten()]
        model = nn.Sequential(*layers, nn.Linear(96, 10)).eval()
        drawn = torch.randn(2, 3, 8, 8)
        images = FrequencyCoordinates(SPEC, drawn).decode(0.15 * drawn).clamp(0, 1)
    labels = torch.tensor([1, 4])
    observation = observe(model, images, labels, input=SPEC)
    with torch.no_grad():
        features = model[:-1](SPEC.normalize(images))
        derivatives = model[-1](features).softmax(1) - functional.one_hot(labels, 10)
    separation = Separation(features.double(), derivatives.double(), 0.0, 0.0, 0.0, 1e-6)
    gradient = {name: value.double() for name, value in observation.gradient().items()}
    return observation, execution_order(model, SPEC), gradient, separation, images


def test_residuals_vanish_at_the_truth():
    *arguments, images = case()
    residual = BodyResiduals(*arguments)
    values = residual(residual._coordinates.encode(images))
    assert max(float(value.abs().max()) for value in values) < 1e-4
    assert len(values) == 2 + 6


def test_products_with_the_jacobian_agree_with_finite_differences_and_with_each_other():
    *arguments, _ = case()
    residual = BodyResiduals(*arguments)
    generator = torch.Generator().manual_seed(1)
    v, tangent = (torch.randn(residual.shape, generator=generator) * 0.3 for _ in range(2))
    values, transposed, product = jacobian(residual, v)
    step = 1e-2
    for forward, backward, exact in zip(
        residual(v + step * tangent), residual(v - step * tangent), product(tangent), strict=True
    ):
        difference = (forward - backward) / (2 * step)
        assert float((difference - exact).norm()) < 0.02 * float(exact.norm()) + 1e-4
    cotangents = tuple(torch.randn(value.shape, generator=generator) for value in values)
    left = sum(float((a * b).sum()) for a, b in zip(product(tangent), cotangents, strict=True))
    torch.testing.assert_close(torch.tensor(left), (transposed(cotangents) * tangent).sum(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_descent_comes_near_the_images():
    *arguments, images = case()
    budget = Budget(2.0, 100)
    inputs, products = fit(*arguments, budget)
    error = float((SPEC.denormalize(inputs) - images).square().mean().sqrt())
    assert error < 0.15 * float((images - 0.5).square().mean().sqrt())
    assert products > 30
