import pytest
import torch
from torch import nn
from torch.nn import functional

from fedleak.client.training import gradient_of
from fedleak.defenses.base import Situation
from fedleak.defenses.grad_defense import GradDefense, sensitivities, slices
from fedleak.errors import ParameterError
from fedleak.modalities.image import InputSpec
from fedleak.observation import Tensors
from fedleak.seeding import Seed

INPUT = InputSpec((3, 8, 8), 10)
AT = Situation(Seed(1), 1, 0, INPUT)
IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(4))
LABELS = torch.arange(3)


def network() -> nn.Module:
    with Seed(3).isolated():
        return nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(36, 10))


def flat(gradient: Tensors) -> torch.Tensor:
    return torch.cat([value.flatten() for value in gradient.values()])


def test_sensitivity_is_the_slope_of_a_tensors_summed_gradient() -> None:
    model = network().double()
    step = 1e-6 * torch.randn(1, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    found = sensitivities(model, IMAGES[:1].double(), LABELS[:1])

    def sums(images: torch.Tensor) -> torch.Tensor:
        loss = functional.cross_entropy(model(images), LABELS[:1])
        return torch.stack([g.sum() for g in torch.autograd.grad(loss, list(model.parameters()))])

    moved = (sums(IMAGES[:1].double() + step) - sums(IMAGES[:1].double())).abs()
    assert bool((moved <= torch.tensor(found) * step.norm() * 1.001 + 1e-12).all())
    assert found[0] > 0
    assert found[3] == pytest.approx(0.0, abs=1e-9)  # the derivatives by the logits sum to zero whatever the image


def test_slices_have_equal_sensitivity_and_cover_everything() -> None:
    gradient = {"a": torch.zeros(100), "b": torch.zeros(300), "c": torch.zeros(200)}
    cuts = slices([3.0, 1.0, 0.0], gradient, 4)
    assert cuts == [0, 33, 66, 100, 600] or cuts == [0, 34, 67, 100, 600]
    assert slices([0.0, 0.0, 0.0], gradient, 3)[::3] == [0, 600]


def test_noise_lies_on_as_many_slices_as_are_drawn() -> None:
    model = network()
    gradient = dict(gradient_of(model, IMAGES, LABELS)[1])
    after = GradDefense(scale=0.1, slices=10, drawn=5).on_gradient(gradient, model, IMAGES, LABELS, AT)
    noise = flat(after) - flat(gradient)
    cuts = slices(sensitivities(model, IMAGES, LABELS), gradient, 10)
    noisy = [bool((noise[a:b] != 0).any()) for a, b in zip(cuts[:-1], cuts[1:], strict=True) if b > a]
    assert 1 <= sum(noisy) <= 5 < len(noisy)
    assert float(noise[noise != 0].std()) == pytest.approx(0.1, rel=0.2)


def test_clipping_bounds_the_slices() -> None:
    model = network()
    gradient = dict(gradient_of(model, IMAGES, LABELS)[1])
    after = GradDefense(scale=0.0, slices=1, drawn=1, clip=1e-2).on_gradient(gradient, model, IMAGES, LABELS, AT)
    torch.testing.assert_close(flat(after), flat(gradient) * 1e-2 / flat(gradient).norm())


def test_more_slices_cannot_be_drawn_than_there_are() -> None:
    with pytest.raises(ParameterError, match="drawn"):
        GradDefense(slices=3, drawn=4)
