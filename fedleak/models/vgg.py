"""VGG-11 (Simonyan and Zisserman, arXiv 1409.1556): eight 3 x 3 convolutions, halved by max pooling, then a classifier.

Convolutions and their initialisation are torchvision's ``vgg11``, or ``vgg11_bn`` with norm "batch". For images of at most
64 pixels the classifier is one linear layer, as is common on CIFAR: torchvision's has two hidden layers of 4,096 units on
7 x 7 maps, 120 million parameters for maps of one or two pixels.

Limits: no attack's figures were measured on it; the closed form refuses its pools
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from pydantic import Field
from torch import nn

from fedleak.modalities.image import InputSpec
from fedleak.models.base import ModelBuilder, ModelConfig, models
from fedleak.models.layers import ActivationName, NormName, activation, norm

MULTIPLES = (1, 2, 4, 4, 8, 8, 8, 8)
POOLED_AFTER = (1, 2, 4, 6, 8)
SMALL = 64
POOLED = 7


class VGG11Config(ModelConfig):
    """Parameters of VGG-11."""

    width: int = Field(default=64, ge=1, description="output channels of the first convolution")
    norm: NormName = "batch"
    activation: ActivationName = "relu"
    head: Literal["auto", "cifar", "imagenet"] = Field(
        default="auto", description="cifar: one linear layer; imagenet: 7 x 7 pooling and two hidden layers; auto: by image size"
    )
    hidden: int = Field(default=4096, ge=1, description="units of each hidden layer of the imagenet head")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="before each linear layer but the first (torchvision's: 0.5)")


@models.register
class VGG11(ModelBuilder):
    """VGG-11 for images of any size; 9.2 million parameters with the small head."""

    name = "vgg11"
    Config = VGG11Config
    config: VGG11Config

    def build(self, input: InputSpec) -> nn.Module:
        """Return the network; layers are called conv1, norm1, act1, pool1, ..., then flatten, hidden1, ..., fc."""
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels, side = self._features(layers, input)
        small = max(input.shape[1:]) <= SMALL
        if self.config.head == "cifar" or (self.config.head == "auto" and small):
            self._small_head(layers, channels * side[0] * side[1], input.num_classes)
        else:
            self._large_head(layers, channels, input.num_classes)
        model = nn.Sequential(layers)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        return model

    def _features(self, layers: OrderedDict[str, nn.Module], input: InputSpec) -> tuple[int, tuple[int, int]]:
        """Add the convolutions; return the channels and the (H, W) of their maps."""
        in_channels, height, width = input.shape
        for number, multiple in enumerate(MULTIPLES, start=1):
            channels = multiple * self.config.width
            layers[f"conv{number}"] = nn.Conv2d(in_channels, channels, 3, padding=1)
            layers[f"norm{number}"] = norm(self.config.norm, channels)
            layers[f"act{number}"] = activation(self.config.activation)
            # Images below 32 pixels cannot be halved five times, and BatchNorm needs more than one pixel in train mode.
            if number in POOLED_AFTER and min(height, width) > (1 if number == len(MULTIPLES) else 2):
                layers[f"pool{number}"] = nn.MaxPool2d(2)
                height, width = height // 2, width // 2
            in_channels = channels
        return in_channels, (height, width)

    def _small_head(self, layers: OrderedDict[str, nn.Module], units: int, classes: int) -> None:
        layers["flatten"] = nn.Flatten()
        if self.config.dropout:
            layers["drop"] = nn.Dropout(self.config.dropout)
        layers["fc"] = nn.Linear(units, classes)

    def _large_head(self, layers: OrderedDict[str, nn.Module], channels: int, classes: int) -> None:
        layers["pool"] = nn.AdaptiveAvgPool2d(POOLED)
        layers["flatten"] = nn.Flatten()
        units = channels * POOLED**2
        for number in (1, 2):
            layers[f"hidden{number}"] = nn.Linear(units, self.config.hidden)
            layers[f"hidden_act{number}"] = activation(self.config.activation)
            if self.config.dropout:
                layers[f"drop{number}"] = nn.Dropout(self.config.dropout)
            units = self.config.hidden
        layers["fc"] = nn.Linear(units, classes)
