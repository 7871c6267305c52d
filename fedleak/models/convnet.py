"""ConvNet-64, the plain network of Inverting Gradients (Geiping et al., arXiv 2003.14053).

Eight 3 x 3 convolutions of 1, 2, 2, 4, 4, 4, 4, 4 times ``width`` channels, each followed by a norm and ReLU, with
3 x 3 max pooling after the sixth and the eighth, and one linear layer.

Limits: its pools and norms are refused by the closed form, and on its ReLUs gradient matching stays near the mean image
"""

from __future__ import annotations

from collections import OrderedDict

from pydantic import Field
from torch import nn

from fedleak.errors import ScenarioError
from fedleak.modalities.image import InputSpec
from fedleak.models.base import ModelBuilder, ModelConfig, models
from fedleak.models.layers import ActivationName, NormName, activation, norm

MULTIPLES = (1, 2, 2, 4, 4, 4, 4, 4)
POOLED_AFTER = (6, 8)


class ConvNetConfig(ModelConfig):
    """Parameters of ConvNet."""

    width: int = Field(default=64, ge=1, description="output channels of the first convolution")
    norm: NormName = "batch"
    activation: ActivationName = "relu"


@models.register
class ConvNet(ModelBuilder):
    """ConvNet for images of at least 9 x 9 pixels."""

    name = "convnet"
    Config = ConvNetConfig
    config: ConvNetConfig

    def build(self, input: InputSpec) -> nn.Module:
        """Return the network; layers are called conv1, norm1, act1, ..., pool6, ..., pool8, flatten, fc."""
        in_channels, height, width = input.shape
        if min(height, width) < 9:
            raise ScenarioError(
                f"model 'convnet': images are {width} x {height} pixels, expected at least 9 x 9; raise data.image_size"
            )
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for number, multiple in enumerate(MULTIPLES, start=1):
            channels = multiple * self.config.width
            layers[f"conv{number}"] = nn.Conv2d(in_channels, channels, 3, padding=1)
            layers[f"norm{number}"] = norm(self.config.norm, channels)
            layers[f"act{number}"] = activation(self.config.activation)
            if number in POOLED_AFTER:
                layers[f"pool{number}"] = nn.MaxPool2d(3)
                height, width = height // 3, width // 3
            in_channels = channels
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(in_channels * height * width, input.num_classes)
        return nn.Sequential(layers)
