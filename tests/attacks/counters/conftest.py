"""What a server sees of a client with defenses, for the tests of the counters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedleak.attacks.base import attacks
from fedleak.client.training import gradient_of
from fedleak.defenses.base import Situation, defenses
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import LocalTraining, Observation
from fedleak.scenario.schema import Model
from fedleak.seeding import Seed

INPUT = InputSpec((3, 8, 8), 5)


@pytest.fixture
def pixels() -> Callable[[int], Tensor]:
    """Return a function that draws so many images."""
    return lambda count: torch.rand(count, *INPUT.shape, generator=Seed(3).generator())


@pytest.fixture
def seen(pixels: Callable[[int], Tensor]) -> Callable[..., tuple[nn.Module, Observation]]:
    """Return a function that takes a defense and its parameters to the server's network and what it sees."""

    def make(name: str, images: int = 1, seed: int = 5, **parameters: Any) -> tuple[nn.Module, Observation]:
        defense = defenses.get(name)(**parameters)
        model, client = (defense.on_architecture(build_model(Model(name="lenet"), INPUT, 1), INPUT, Seed(2)) for _ in range(2))
        batch, labels, at = pixels(images), torch.arange(images) % INPUT.num_classes, Situation(Seed(seed), 1, 0, INPUT)
        defense.on_model(client.eval(), at)
        gradient = gradient_of(client, INPUT.normalize(batch), labels, defense.on_loss)[1]
        gradient = defense.on_gradient(gradient, client, batch, labels, at)
        observation = Observation(
            kind="gradient",
            parameters={name: value.detach().clone() for name, value in model.named_parameters()},
            update=defense.on_update(dict(gradient), at),
            input=INPUT,
            local=LocalTraining(images, images, mode="eval"),
            labels=tuple(sorted(labels.tolist())),
            defenses=({"name": name, **parameters},),
        )
        return model.eval(), observation

    return make


@pytest.fixture
def error(pixels: Callable[[int], Tensor]) -> Callable[..., float]:
    """Return a function that attacks and gives the mean squared error; images are drawn with distinct labels, in order."""

    def measure(attack: str, model: nn.Module, observation: Observation, iterations: int = 40, **parameters: Any) -> float:
        [result] = attacks.get(attack)(iterations=iterations, labels="given", **parameters)([observation], model, seed=2)
        assert result.images is not None, result.error
        return float((result.images - pixels(observation.batch_size)).square().mean())

    return measure
