"""LeNet with strides in place of pooling, the network of Deep Leakage from Gradients (Zhu et al., arXiv 1906.08935).

Four 5 x 5 convolutions with strides 2, 2, 1, 1, an activation after each, and one linear layer. Its authors draw
all weights and biases from U(-0.5, 0.5), far larger than usual, which keeps the gradients of sigmoid layers from
vanishing; with ReLU and its kin such weights make the logits explode.

Limits: at its authors' 12 channels, the gradient of two images of 32 x 32 pixels has fewer equations than unknowns
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from fedleak.modalities.image import InputSpec
from fedleak.models.base import ModelBuilder, ModelConfig, models
from fedleak.models.layers import ActivationName, activation

STRIDES = (2, 2, 1, 1)
REACH = 0.5


class LeNetConfig(ModelConfig):
    """Parameters of LeNet."""

    channels: int = Field(default=12, ge=1, description="output channels of each convolution")
    activation: ActivationName = "sigmoid"
    bias: bool = True
    init: Literal["uniform", "default"] | None = Field(
        default=None, description="uniform: U(-0.5, 0.5), as its authors; default: PyTorch's; by default uniform for sigmoid only"
    )


@models.register
class LeNet(ModelBuilder):
    """LeNet for images of any size."""

    name = "lenet"
    Config = LeNetConfig
    config: LeNetConfig

    def build(self, input: InputSpec) -> nn.Module:
        """Return the network; layers are called conv1, act1, ..., conv4, act4, flatten, fc."""
        in_channels, height, width = input.shape
        config = self.config
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, stride in enumerate(STRIDES, start=1):
            layers[f"conv{number}"] = nn.Conv2d(in_channels, config.channels, 5, stride, padding=2, bias=config.bias)
            layers[f"act{number}"] = activation(config.activation)
            in_channels, height, width = config.channels, -(-height // stride), -(-width // stride)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(in_channels * height * width, input.num_classes, bias=config.bias)
        model = nn.Sequential(layers)
        if (config.init or ("uniform" if config.activation == "sigmoid" else "default")) == "uniform":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.uniform_(-REACH, REACH)
        return model
