"""ResNet-18 and ResNet-50 as torchvision has them (He et al., arXiv 1512.03385), with a stem that suits the images.

For images of at most 64 pixels the stem is a 3 x 3 convolution with stride 1 and no max pooling, as is common on
CIFAR; torchvision's own stem would leave a last stage of a single pixel.

Limits: attacks had trials of seconds only on it; an iteration at 224 x 224 takes 0.2 (ResNet-18) and 0.8 CPU seconds
(ResNet-50), tests/benchmarks/imagenet.py
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from fedleak.modalities.image import InputSpec
from fedleak.models.base import ModelBuilder, ModelConfig, models
from fedleak.models.layers import norm

SMALL = 64


class ResNetConfig(ModelConfig):
    """Parameters of torchvision's ResNets."""

    stem: Literal["auto", "cifar", "imagenet"] = Field(
        default="auto", description="cifar: 3 x 3, stride 1, no pooling; imagenet: 7 x 7, stride 2, pooling; auto: by image size"
    )
    norm: Literal["batch", "group"] = "batch"


class _ResNet(ModelBuilder):
    Config = ResNetConfig
    config: ResNetConfig

    def build(self, input: InputSpec) -> nn.Module:
        """Return torchvision's network, its first and last layer fitted to the input."""
        # torchvision takes seconds to import, and most scenarios do not need it.
        from torchvision.models import resnet

        make: Any = getattr(resnet, self.name)
        model: nn.Module = make(weights=None, num_classes=input.num_classes, norm_layer=partial(norm, self.config.norm))
        small = max(input.shape[1:]) <= SMALL
        if self.config.stem == "cifar" or (self.config.stem == "auto" and small):
            model.conv1 = nn.Conv2d(input.shape[0], 64, 3, padding=1, bias=False)
            model.maxpool = nn.Identity()
        elif input.shape[0] != 3:
            model.conv1 = nn.Conv2d(input.shape[0], 64, 7, stride=2, padding=3, bias=False)
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        return model


@models.register
class ResNet18(_ResNet):
    """11.2 million parameters."""

    name: ClassVar[str] = "resnet18"


@models.register
class ResNet50(_ResNet):
    """23.5 million parameters."""

    name: ClassVar[str] = "resnet50"
