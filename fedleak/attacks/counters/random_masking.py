"""Through random masking: match the entries that survived, at the scale that they have.

Formula: D(m * grad L(f(x), y) / (1 - p), g) with m_i = 1 where the entry received is not zero, without 1 / (1 - p) where the
client did not rescale; labels are read from g / (1 - p) there
Source: Fan et al. 2025, arXiv 2506.08435 (partial matching); Yue et al. 2023, arXiv 2206.04055
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from fedleak.attacks.counters.base import Counter, Countered, change, changed, counters
from fedleak.defenses.random_masking import RandomMasking
from fedleak.observation import Observation


@counters.register
class RandomMaskingCounter(Counter):
    """Knows with which probability entries were dropped, and whether the others were rescaled."""

    name: ClassVar[str] = "random-masking"
    config: RandomMasking.Config

    def clean(self, observation: Observation) -> Observation:
        """Return the update at its expectation, which label rules read."""
        if self.config.rescale:
            return observation
        grown = {name: value / (1 - self.config.p) for name, value in change(observation).items()}
        return changed(observation, grown)

    def observe(self, victim: Countered) -> None:
        """Find the survivors, and take back what :meth:`clean` did to them."""
        if not self.config.rescale:
            victim.observed = [value * (1 - self.config.p) for value in victim.observed]
        factor = 1 / (1 - self.config.p) if self.config.rescale else 1.0
        self._survived = [factor * (value != 0) for value in victim.observed]

    def guess(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Drop the same entries, and rescale the others as the client did."""
        return [value * kept for value, kept in zip(guessed, self._survived, strict=True)]

    def noise(self, variances: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Return the variance of noise that came before, in the entries that are left."""
        left = [value * kept.square() for value, kept in zip(variances, self._survived, strict=False)]
        return [*left, *variances[len(left) :]]  # a later counter may match more than the parameters' entries
