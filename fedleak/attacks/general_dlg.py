"""General deep leakage: labels without images first, then gradients of early layers weighted most, for gradients and weights.

Formula: x = argmin sum_l w_l |grad_l L(f(x), y) - g_l|^2 / |g_l|^2 + tv TV(x) + clip mean (x - min(max(x, 0), 1))^2
+ scale mean_x max(max |x - 1/2| - 1/2, 0)^2, w_l proportional to exp(-depth l), l the tensor's number; g = (W_0 - W_T) / (eta T)
Source: Geng et al. 2021, "Towards General Deep Leakage in Federated Learning", arXiv 2110.09074; labels by its rule ``zero-shot``
For: smooth networks, and batches whose labels repeat
Limits: a single wrong label takes the images from 10 dB above the mean image to 2 dB below it, equal labels cost 10 dB, and 2,
4 and 8 local steps at a rate of 0.01 lower 25 dB to 18, 14 and 12 (scenarios/claims/general-dlg.toml)

The kinds of term are the paper's. Its weights, its optimiser and the exact form of its scale term could not be found: the scale
term here is the largest excess of an image over [0, 1], weights were chosen on sample images 0 to 3, and coordinates and L-BFGS
are those of ``dlg``. All local steps are read as one gradient at the weights sent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedleak.attacks.base import AttackConfig, attacks
from fedleak.attacks.dlg import DLG, DLGConfig
from fedleak.attacks.images.priors import total_variation


class GeneralDLGConfig(DLGConfig):
    """Parameters; none of the values is the paper's."""

    restarts: int = Field(default=1, ge=1, description="starting points; the one with the lowest own loss is kept")
    stuck: float | None = Field(
        default=None,
        gt=0,
        description="of local steps read as one gradient, stop where the loss slows down to end above this: flat; or never",
    )
    depth: float = Field(default=0.1, ge=0, description="how fast weights fall with depth, per parameter tensor")
    tv: float = Field(default=1e-4, ge=0, description="weight of the total variation of pixels")
    clip: float = Field(default=0.1, ge=0, description="weight of the squared distance to the nearest image in [0, 1]")
    scale: float = Field(default=1e-3, ge=0, description="weight of the squared excess of each image's range over [0, 1]")


@attacks.register
class GeneralDLG(DLG):
    """Towards General Deep Leakage (arXiv 2110.09074)."""

    name: ClassVar[str] = "general-dlg"
    Config: ClassVar[type[AttackConfig]] = GeneralDLGConfig
    config: GeneralDLGConfig
    default_labels: ClassVar[str | None] = "zero-shot"

    def distance(self, guessed: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return the mean over tensors of the relative squared distance, weighted by depth."""
        weights = [math.exp(-self.config.depth * number) for number in range(len(observed))]
        total = guessed[0].new_zeros(())
        for weight, mine, seen in zip(weights, guessed, observed, strict=True):
            norm = seen.square().sum().clamp_min(torch.finfo(seen.dtype).tiny)
            total = total + weight * torch.where(seen.any(), (mine - seen).square().sum() / norm, 0.0)
        return total / sum(weights)

    def prior(self, images: Tensor) -> Tensor:
        """Return the weighted total variation, clip and scale terms."""
        clip = (images - images.clamp(0, 1)).square().mean()
        scale = ((images - 0.5).abs().amax((1, 2, 3)) - 0.5).relu().square().mean()
        return self.config.tv * total_variation(images) + self.config.clip * clip + self.config.scale * scale
