import pytest
import torch
from torch import nn

from fedleak.attacks.membership import gradients
from fedleak.attacks.membership.gradients import ExampleGradients
from fedleak.errors import AttackError
from fedleak.modalities.image import InputSpec
from fedleak.observation import observe

SPEC = InputSpec((3, 8, 8), 4, (0.5,) * 3, (0.25,) * 3)
IMAGES, LABELS = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 3, 3])


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(), nn.Flatten(), nn.Linear(144, 4)
        ).eval()


def test_the_mean_of_examples_gradients_is_the_batchs() -> None:
    model = network()
    observation = observe(model, IMAGES, LABELS, input=SPEC)
    of = ExampleGradients(observation, network().train())  # eval at the sent statistics, whatever mode the model comes in
    assert torch.allclose(of(IMAGES, LABELS).mean(0), of.flat(observation.update), atol=1e-7)


def test_the_models_own_weights_do_not_count_and_stay() -> None:
    observation, other = observe(network(), IMAGES, LABELS, input=SPEC), network()
    with torch.no_grad():
        for value in other.parameters():
            value.zero_()
    assert torch.equal(
        ExampleGradients(observation, other)(IMAGES, LABELS), ExampleGradients(observation, network())(IMAGES, LABELS)
    )
    assert not any(value.any() for value in other.parameters())


def test_a_sketch_keeps_inner_products(monkeypatch: pytest.MonkeyPatch) -> None:
    observation = observe(network(), IMAGES, LABELS, input=SPEC)
    whole = ExampleGradients(observation, network())(IMAGES, LABELS)
    monkeypatch.setattr(gradients, "WIDEST", 256)
    of = ExampleGradients(observation, network())
    sketched = of(IMAGES, LABELS)
    assert sketched.shape == (5, 256)
    assert torch.allclose(sketched.mean(0), of.flat(observation.update), atol=1e-6)
    exact, near = whole @ whole.T, sketched @ sketched.T
    assert float((near - exact).abs().max() / exact.diagonal().max()) < 0.25


def test_no_example_is_refused() -> None:
    with pytest.raises(AttackError, match="no example"):
        ExampleGradients(observe(network(), IMAGES, LABELS, input=SPEC), network())(IMAGES[:0], LABELS[:0])
