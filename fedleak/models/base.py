"""What every model of the zoo is: a name, a config, and a network built for an input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import nn

from fedleak.modalities.image import InputSpec
from fedleak.registry import Registry
from fedleak.scenario.ranges import Parameters
from fedleak.scenario.validation import read_parameters


class ModelConfig(Parameters):
    """Parameters of a model."""


class ModelBuilder(ABC):
    """Builds one kind of network.

    Parameters
    ----------
    **parameters
        The fields of the class's ``Config``.

    Raises
    ------
    ParameterError
        If a parameter is unknown or out of range.
    """

    name: ClassVar[str]
    modality: ClassVar[str] = "image"
    """What it reads."""
    Config: ClassVar[type[ModelConfig]] = ModelConfig

    def __init__(self, **parameters: Any) -> None:
        self.config = read_parameters(self.Config, parameters, f"model '{self.name}'")

    @abstractmethod
    def build(self, input: InputSpec) -> nn.Module:
        """Return a network from model inputs (B, C, H, W) to logits (B, num_classes), freshly initialised.

        Layers draw from the global generator, which the caller has seeded.

        Raises
        ------
        ScenarioError
            If the network cannot take images of the input's shape.
        """


models: Registry[type[ModelBuilder]] = Registry("model", "fedleak.models")
