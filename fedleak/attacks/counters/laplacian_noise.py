"""Through Laplacian noise: as through Gaussian noise of its variance, but with the absolute differences of its likelihood.

Formula: argmin sum_k |grad_k L(f(x), y) - g_k| / scale - log p(x); each difference d enters the attack's squares as d where it is
far below the scale, and as the root of 4 scale |d| far above it
Source: Balunovic et al. 2022, "Bayesian Framework for Gradient Leakage", arXiv 2111.04706; the weights are fedleak's own
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from fedleak.attacks.counters._noise import NoiseCounter
from fedleak.attacks.counters.base import counters, unit
from fedleak.defenses.laplacian_noise import LaplacianNoise

_ROUNDED = 2.0  # scales, within which differences are squared: 4 scale / (2 * this) is 1


@counters.register
class LaplacianNoiseCounter(NoiseCounter):
    """Knows the noise's scale."""

    name: ClassVar[str] = "laplacian-noise"
    config: LaplacianNoise.Config

    def variances(self, observed: Sequence[Tensor]) -> list[Tensor]:
        """Return twice the square of the scale."""
        return [value.new_tensor(2 * (self.config.scale / unit(self.observation)) ** 2) for value in observed]

    def compare(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Return the guess with each difference from the observed at the root of what its likelihood is, as a square."""
        scale = self.config.scale / unit(self.observation)
        if scale == 0 or not self._victim.weighs_noise:
            return guessed
        found = []
        for value, seen in zip(guessed, observed, strict=True):
            difference = value - seen
            lengths = (difference.square() + (_ROUNDED * scale) ** 2).sqrt() + _ROUNDED * scale
            found.append(seen + difference * (4 * scale / lengths).sqrt())
        return found
