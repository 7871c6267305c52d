"""Deep Leakage from Gradients: images and soft labels together, by L-BFGS on the squared distance of gradients.

Formula: x, y = argmin sum_l |grad_l L(f(x), softmax(y)) - g_l|^2 / sum_l |g_l|^2, from x, y ~ N(0, 1)
Source: Zhu, Liu, Han 2019, "Deep Leakage from Gradients", arXiv 1906.08935
For: smooth networks and small batches
Limits: on ReLU networks it stays near the mean image, as all gradient matching does; behind several local steps it takes the
update for one gradient, and can fall below the mean image where the weights drift (tests/benchmarks/local_steps.py)

Unlike the authors' code it searches along each direction (strong Wolfe) instead of taking full steps, optimises scaled
cosine frequencies instead of pixels, starting near grey, and stops when the loss has converged. Several local steps are read as
one gradient; a start whose loss slows down for that ends, and is the only one. ``coordinates = "pixel"`` starts from
x ~ N(0, 1) in pixels, as the paper does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedleak.attacks.base import AttackConfig, attacks
from fedleak.attacks.images.coordinates import Coordinates, FrequencyCoordinates
from fedleak.attacks.matching.base import MatchingAttack, MatchingConfig
from fedleak.attacks.matching.objectives import squared_distance
from fedleak.modalities.image import InputSpec


class DLGConfig(MatchingConfig):
    """Parameters of L-BFGS, with the paper's values."""

    coordinates: Literal["frequency", "pixel"] = Field(default="frequency", description="what the variables stand for")
    start: float = Field(default=0.1, gt=0, description="standard deviation of the first frequencies; pixels start from 1")
    tolerance: float = Field(default=1e-8, ge=0, description="stop once the loss is this small: converged")
    learning_rate: float = Field(default=1.0, gt=0, description="first step of each line search")
    history: int = Field(default=100, ge=1, description="steps that L-BFGS remembers")
    inner: int = Field(default=20, ge=1, description="L-BFGS steps in one iteration")
    restarts: int = Field(default=3, ge=1, description="starting points; the one with the lowest own loss is kept")
    stuck: float | None = Field(
        default=1e-3,
        gt=0,
        description="of local steps read as one gradient, stop where the loss slows down to end above this: flat; or never",
    )
    patience: int = Field(default=5, ge=1, description="stop after so many iterations without progress: flat")


@attacks.register
class DLG(MatchingAttack):
    """Deep Leakage from Gradients (arXiv 1906.08935)."""

    name: ClassVar[str] = "dlg"
    Config: ClassVar[type[AttackConfig]] = DLGConfig
    config: DLGConfig
    precision: ClassVar[torch.dtype] = torch.float64
    loss_scale: ClassVar[float] = 1e6
    spares_restarts: ClassVar[bool] = True

    def coordinates(self, input: InputSpec, like: Tensor) -> Coordinates:
        """Return frequencies, or pixels where the configuration asks for the paper's."""
        return FrequencyCoordinates(input, like) if self.config.coordinates == "frequency" else super().coordinates(input, like)

    def start(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return nearly flat grey images, or standard normal pixels."""
        return torch.randn(shape, generator=generator) * (self.config.start if self.config.coordinates == "frequency" else 1.0)

    def distance(self, guessed: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return the relative squared distance."""
        return squared_distance(guessed, observed)

    def optimiser(self, variables: list[Tensor]) -> torch.optim.Optimizer:
        """Return L-BFGS with a strong-Wolfe line search."""
        return torch.optim.LBFGS(
            variables,
            lr=self.config.learning_rate,
            max_iter=self.config.inner,
            history_size=self.config.history,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )
