"""General deep leakage: labels without images first, then gradients of early layers weighted most, for gradients and weights.

Formula: x = argmin sum_l w_l |grad_l L(f(x), y) - g_l|^2 / |g_l|^2 + tv TV(x) + clip mean (x - min(max(x, 0), 1))^2
+ scale (max(|x - 1/2| - 1/2, 0))^2, w_l = exp(-depth l) / sum exp(-depth l'), l the layer's number; g = (W_0 - W_T) / (eta T)
Source: Geng et al. 2021, "Towards General Deep Leakage in Federated Learning", arXiv 2110.09074; labels by its rule ``zero-shot``

The kinds of term are the paper's; its weights, its optimiser and the exact form of its scale term could not be found. The scale
term here holds the range of each image at [0, 1]: the largest excess over it, squared. Weights were chosen on sample images 0 to
3. All local steps are read as one gradient at the weights sent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedleak.attacks.base import AttackConfig, attacks
from fedleak.attacks.matching import MatchingAttack, MatchingConfig, Unknowns
from fedleak.attacks.priors import total_variation

_DECAYS = (3 / 8, 5 / 8, 7 / 8)


class GeneralDLGConfig(MatchingConfig):
    """Parameters; none of the values is the paper's."""

    iterations: int = Field(default=1000, ge=1, description="optimiser iterations for each start")
    learning_rate: float = Field(default=0.1, gt=0, description="Adam's, times 0.1 at 3/8, 5/8 and 7/8 of the iterations")
    depth: float = Field(default=0.1, ge=0, description="how fast the weights of the layers fall with depth, per parameter tensor")
    tv: float = Field(default=0.02, ge=0, description="weight of the total variation of pixels")
    clip: float = Field(default=1.0, ge=0, description="weight of the squared distance to the nearest image in [0, 1]")
    scale: float = Field(default=0.01, ge=0, description="weight of the squared excess of each image's range over [0, 1]")
    tolerance: float = Field(default=1e-6, ge=0, description="stop once the loss is this small: converged")
    patience: int | None = Field(default=None, ge=1, description="stop after so many iterations without progress; or never")


@attacks.register
class GeneralDLG(MatchingAttack):
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

    def optimiser(self, variables: list[Tensor]) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(variables, lr=self.config.learning_rate)

    def after_step(self, step: int, optimiser: torch.optim.Optimizer, unknowns: Unknowns) -> None:
        """Lower the learning rate at its milestones."""
        if step + 1 in {int(self.config.iterations * part) for part in _DECAYS}:
            for group in optimiser.param_groups:
                group["lr"] *= 0.1
