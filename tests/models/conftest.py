from collections.abc import Callable

import pytest
from torch import nn

from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.scenario.schema import Model

CIFAR = InputSpec((3, 32, 32), 10)


@pytest.fixture
def build() -> Callable[..., nn.Module]:
    """Build a model of the zoo by name and parameters, for CIFAR-10's images unless another input is given."""

    def make(name: str, input: InputSpec = CIFAR, **parameters: object) -> nn.Module:
        return build_model(Model(name=name, **parameters), input, 1)

    return make


@pytest.fixture
def size() -> Callable[[nn.Module], int]:
    """Count a model's parameters."""
    return lambda model: sum(parameter.numel() for parameter in model.parameters())
