"""ResNet-20 for small images (He et al., arXiv 1512.03385, section 4.2): 3 stages of 3 basic blocks.

Stages have 1, 2 and 4 times ``width`` channels; the second and third begin with stride 2. Where the shape changes, the
shortcut takes every second pixel and pads channels with zeros (the paper's option A), so it has no parameters.

Limits: the closed form refuses residual connections, and on its ReLUs gradient matching stays near the mean image; `mmse` is
the attack that was measured on it
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedleak.modalities.image import InputSpec
from fedleak.models.base import ModelBuilder, ModelConfig, models
from fedleak.models.layers import norm

BLOCKS_PER_STAGE = 3


class ResNet20Config(ModelConfig):
    """Parameters of ResNet-20."""

    width: int = Field(default=16, ge=1, description="channels of the first stage")
    norm: Literal["batch", "group"] = "batch"


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm_name: Literal["batch", "group"]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.norm1 = norm(norm_name, channels)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = norm(norm_name, channels)
        self.act2 = nn.ReLU()
        self.stride = stride
        self.added_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, channels, ceil(H / stride), ceil(W / stride))."""
        out = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        before = self.added_channels // 2
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added_channels - before))
        activated: Tensor = self.act2(out + shortcut)
        return activated


@models.register
class ResNet20(ModelBuilder):
    """ResNet-20 for images of any size."""

    name = "resnet20"
    Config = ResNet20Config
    config: ResNet20Config

    def build(self, input: InputSpec) -> nn.Module:
        """Return the network; layers are called conv1, norm1, act1, stage1 to stage3, pool, flatten, fc."""
        width = self.config.width
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=nn.Conv2d(input.shape[0], width, 3, padding=1, bias=False),
            norm1=norm(self.config.norm, width),
            act1=nn.ReLU(),
        )
        in_channels = width
        for stage, multiple in enumerate((1, 2, 4), start=1):
            blocks: list[nn.Module] = []
            for position in range(BLOCKS_PER_STAGE):
                stride = 2 if stage > 1 and position == 0 else 1
                blocks.append(BasicBlock(in_channels, multiple * width, stride, self.config.norm))
                in_channels = multiple * width
            layers[f"stage{stage}"] = nn.Sequential(*blocks)
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(in_channels, input.num_classes)
        model = nn.Sequential(layers)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        return model
