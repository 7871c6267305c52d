"""Layers that several models share, chosen by name; none works in place, so that second derivatives exist."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

ActivationName = Literal["sigmoid", "tanh", "relu", "leaky-relu", "elu", "gelu"]
NormName = Literal["batch", "group", "none"]

_ACTIVATIONS: dict[ActivationName, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
}


def activation(name: ActivationName) -> nn.Module:
    """Return a fresh activation layer."""
    return _ACTIVATIONS[name]()


def norm(name: NormName, channels: int) -> nn.Module:
    """Return a fresh normalisation layer for (B, channels, H, W); ``group`` has 8 groups where ``channels`` allows."""
    if name == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(math.gcd(8, channels), channels) if name == "group" else nn.Identity()
