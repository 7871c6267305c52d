"""Through client-level differential privacy: the clip of the whole update in the guess, and the likelihood under its noise.

Formula: D(grad * min(1, max_norm / |grad|), g) with the variance (noise_multiplier * max_norm)^2 in each entry
Source: Balunovic et al. 2022, "Bayesian Framework for Gradient Leakage", arXiv 2111.04706; kin of clipping and gaussian-noise
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from fedleak.attacks.counters._noise import NoiseCounter
from fedleak.attacks.counters.base import counters, unit
from fedleak.attacks.counters.clipping import shrunk
from fedleak.defenses.client_dp import ClientDP, noise_std


@counters.register
class ClientDPCounter(NoiseCounter):
    """Knows the largest norm and the noise."""

    name: ClassVar[str] = "client-dp"
    config: ClientDP.Config

    def variances(self, observed: Sequence[Tensor]) -> list[Tensor]:
        """Return the noise's variance, in the gradient's units."""
        return [value.new_tensor((noise_std(self.config) / unit(self.observation)) ** 2) for value in observed]

    def guess(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Clip the guess."""
        limit = self.config.max_norm / unit(self.observation)
        return guessed if not self.config.clips or math.isinf(limit) else shrunk(guessed, limit)
