"""Through Gaussian noise: the likelihood of the update under the noise, against a prior that is as strong as it must be.

Formula: argmin sum_k (grad_k L(f(x), y) - g_k)^2 / (2 std^2) - log p(x), for an attack that weighs entries with std^2 added to
its own variance of entry k; for any other, its own distance with the total variation of x at the weight that it has then
Source: Balunovic et al. 2022, "Bayesian Framework for Gradient Leakage", arXiv 2111.04706; the weights are fedleak's own
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from fedleak.attacks.counters._noise import NoiseCounter
from fedleak.attacks.counters.base import counters, unit
from fedleak.defenses.gaussian_noise import GaussianNoise


@counters.register
class GaussianNoiseCounter(NoiseCounter):
    """Knows the noise's standard deviation."""

    name: ClassVar[str] = "gaussian-noise"
    config: GaussianNoise.Config

    def variances(self, observed: Sequence[Tensor]) -> list[Tensor]:
        """Return the square of the standard deviation."""
        return [value.new_tensor((self.config.std / unit(self.observation)) ** 2) for value in observed]
