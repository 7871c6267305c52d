"""A multilayer perceptron on flattened pixels; its first layer gives the image away in closed form (Phong et al., 2017).

Limits: made for attacks on its first layer, not for accuracy
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

from pydantic import Field
from torch import nn

from fedleak.modalities.image import InputSpec
from fedleak.models.base import ModelBuilder, ModelConfig, models
from fedleak.models.layers import ActivationName, activation


class MLPConfig(ModelConfig):
    """Parameters of the multilayer perceptron."""

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(256, 256), max_length=100, description="units of each hidden layer"
    )
    activation: ActivationName = "relu"
    bias: bool = True


@models.register
class MLP(ModelBuilder):
    """Linear layers with an activation between them; no hidden layer gives a linear classifier."""

    name = "mlp"
    Config = MLPConfig
    config: MLPConfig

    def build(self, input: InputSpec) -> nn.Module:
        """Return the network; layers are called flatten, fc1, act1, ..., fc."""
        channels, height, width = input.shape
        units = channels * height * width
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for number, hidden in enumerate(self.config.hidden, start=1):
            layers[f"fc{number}"] = nn.Linear(units, hidden, bias=self.config.bias)
            layers[f"act{number}"] = activation(self.config.activation)
            units = hidden
        layers["fc"] = nn.Linear(units, input.num_classes, bias=self.config.bias)
        return nn.Sequential(layers)
