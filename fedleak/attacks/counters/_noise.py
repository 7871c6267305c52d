"""What the counters of additive noise share: its variance, and a prior that is as strong as the noise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from fedleak.attacks.counters.base import Counter, Countered
from fedleak.attacks.images.priors import total_variation

ROUGHNESS = 0.06
"""Mean difference of neighbouring pixels in natural images, in units of the range [0, 1]."""


class NoiseCounter(Counter):
    """Knows the variance of the noise in each entry of an update.

    An attack that weighs likelihood against prior itself is told the variance. To the loss of any other the total variation
    of the images is added with its weight in the posterior, taking for the likelihood of a gradient of the observed length
    its cosine distance times that length squared over the variance.
    """

    @abstractmethod
    def variances(self, observed: Sequence[Tensor]) -> list[Tensor]:
        """Return the variance of the noise in each entry observed, in the gradient's units: as large, or one for a tensor."""

    def observe(self, victim: Countered) -> None:
        """Weigh the prior."""
        self._victim, self._pixels = victim, torch.zeros(())
        # The mean over a cohort's updates holds the mean of their noises.
        clients = len(self.observation.cohort)
        self._variances = [value / clients for value in self.variances(victim.observed)]
        entries = sum(value.numel() for value in victim.observed)
        squared = sum(float(value.square().sum()) for value in victim.observed)
        noise = sum(float(v.expand_as(o).sum()) for v, o in zip(self._variances, victim.observed, strict=True))
        signal = max(squared - noise, _LEAST * squared)
        pixels = self.observation.batch_size * prod(self.observation.input.shape)
        self._weight = noise / entries / (signal * squared) ** 0.5 * pixels / ROUGHNESS

    def batch(self, inputs: Tensor, targets: Tensor, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Remember the images."""
        self._pixels = self.observation.input.denormalize(inputs)
        return inputs, targets

    def noise(self, variances: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Add this noise's."""
        return [value + more for value, more in zip(variances, self._variances, strict=True)]

    def penalty(self, others: Sequence[Tensor]) -> Tensor | None:
        """Return the total variation, where the attack does not weigh the noise itself."""
        if self._victim.weighs_noise or self._weight == 0:
            return None
        # Of k updates matched together each adds its own, and together they are k times as good as one.
        weight: float = self._weight / self._victim.joined**2
        return weight * total_variation(self._pixels)


_LEAST = 1e-3
