"""What the counters of additive noise share: its variance, and a prior that is as strong as the noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedleak.attacks.counters.base import Counter, unit
from fedleak.attacks.priors import total_variation
from fedleak.attacks.victim import Victim

ROUGHNESS = 0.06
"""Mean difference of neighbouring pixels in natural images, in units of the range [0, 1]."""


class NoiseCounter(Counter):
    """Knows the variance of noise that was added to every entry of an update.

    An attack that weighs likelihood against prior itself is told the variance. To the loss of any other the total variation
    of the images is added with its weight in the posterior, taking for the likelihood of a gradient of the observed length
    its cosine distance times that length squared over the variance.
    """

    def variance(self) -> float:
        """Return the variance of what was added to each entry, in the update's units."""
        raise NotImplementedError

    def observe(self, victim: Victim) -> None:
        """Weigh the prior."""
        self._victim, self._pixels = victim, torch.zeros(())
        self._variance = self.variance() / unit(self.observation) ** 2
        entries = sum(value.numel() for value in victim.observed)
        squared = sum(float(value.square().sum()) for value in victim.observed)
        signal = max(squared - entries * self._variance, _LEAST * squared)
        pixels = self.observation.batch_size * torch.Size(self.observation.input.shape).numel()
        self._weight = self._variance / (signal * squared) ** 0.5 * pixels / ROUGHNESS

    def batch(self, inputs: Tensor, targets: Tensor, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Remember the images."""
        self._pixels = self.observation.input.denormalize(inputs)
        return inputs, targets

    def noise(self, variances: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Add this noise's."""
        return [value + self._variance for value in variances]

    def penalty(self, others: Sequence[Tensor]) -> Tensor | None:
        """Return the total variation, where the attack does not weigh the noise itself."""
        if self._victim.weighs_noise or self._weight == 0:
            return None
        # Of k updates matched together each adds its own, and together they are k times as good as one.
        weight: float = self._weight / self._victim.joined**2
        return weight * total_variation(self._pixels)


_LEAST = 1e-3
