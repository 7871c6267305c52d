"""Inverting Gradients: the angle between gradients, a total-variation prior, and Adam on the gradient's signs.

Formula: x = argmin 1 - <grad L(f(x), y), g> / (|grad| |g|) + tv * TV(x), x within [0, 1]
Source: Geiping, Bauermeister, Droege, Moeller 2020, "Inverting Gradients", arXiv 2003.14053
For: any network
Limits: on ReLU networks it stays near the mean image: 12.2 and 16.4 dB for two images, mean image 13.8
(scenarios/resnet20.toml); on smooth ones natural has 30 dB of four images where this has 14 (tests/benchmarks/natural.py);
several local steps count as one gradient

The authors' code weighs the total variation of model inputs; divide its weights by the inputs' standard deviation, about
0.25, to have them in pixels. Its CIFAR-10 weights reach from 1e-6 to 0.1; on DLG's LeNet quality is best, and flat, between
0.03 and 0.2 in pixels (15.3 dB on average over six images in 1,000 iterations, against 10.5 dB at 1e-6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedleak.attacks.base import AttackConfig, attacks
from fedleak.attacks.images.priors import total_variation
from fedleak.attacks.matching.base import Hooks, MatchingAttack, MatchingConfig, Try
from fedleak.attacks.matching.objectives import cosine_distance

_DECAYS = (3 / 8, 5 / 8, 7 / 8)


class InvertingGradientsConfig(MatchingConfig):
    """Parameters, with the paper's values but fewer iterations, and a total variation that suits images of 32 x 32 pixels."""

    iterations: int = Field(default=1000, ge=1, description="optimiser iterations for each start (the paper's: 4,000 and more)")
    learning_rate: float = Field(default=0.1, gt=0, description="Adam's, times 0.1 at 3/8, 5/8 and 7/8 of the iterations")
    tv: float = Field(default=0.1, ge=0, description="weight of the total variation of pixels in [0, 1]")
    signed: bool = Field(default=True, description="give Adam only the signs of the gradient")
    boxed: bool = Field(default=True, description="keep pixels within [0, 1]")
    tolerance: float = Field(default=1e-6, ge=0, description="stop once the loss is this small: converged")
    # What this costs in quality has not been measured, so that it is off by default.
    patience: int | None = Field(
        default=None, ge=1, description="go on to the next learning rate after so many iterations without progress; or never"
    )


@attacks.register
class InvertingGradients(MatchingAttack):
    """Inverting Gradients (arXiv 2003.14053)."""

    name: ClassVar[str] = "inverting-gradients"
    Config: ClassVar[type[AttackConfig]] = InvertingGradientsConfig
    config: InvertingGradientsConfig
    default_labels: ClassVar[str | None] = "bias-corrected"

    def distance(self, guessed: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return one minus the cosine."""
        return cosine_distance(guessed, observed)

    def prior(self, images: Tensor) -> Tensor:
        """Return the weighted total variation."""
        return self.config.tv * total_variation(images)

    def optimiser(self, variables: list[Tensor]) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(variables, lr=self.config.learning_rate)

    def hooks(self, one: Try) -> Hooks:
        """Return signs before a step, the box and the milestones after it, and the next milestone where it is flat."""

        def after_step(step: int, variables: list[Tensor], optimiser: torch.optim.Optimizer) -> None:
            if self.config.boxed:
                one.unknowns.box(variables[0])
            self.lower(step, optimiser)

        return Hooks(_signs if self.config.signed else None, after_step, self.when_flat)

    def lower(self, step: int, optimiser: torch.optim.Optimizer) -> None:
        """Lower the learning rates at the paper's milestones, unless they are that low already."""
        passed = sum(step + 1 >= int(self.config.iterations * part) for part in _DECAYS)
        for group in optimiser.param_groups:
            first = group.setdefault("initial_lr", group["lr"])
            group["lr"] = min(group["lr"], first * 0.1**passed)

    def when_flat(self, optimiser: torch.optim.Optimizer) -> bool:
        """Go on to the next milestone's learning rate; past the last one the descent is over."""
        group = optimiser.param_groups[0]
        if group["lr"] < self.config.learning_rate * 0.1 ** (len(_DECAYS) - 0.5):
            return False
        group["lr"] *= 0.1
        return True


def _signs(variables: list[Tensor]) -> None:
    """Replace the image's gradient by its signs."""
    if variables[0].grad is not None:
        variables[0].grad.sign_()
