"""Through random masking: match the entries that survived, at the scale that they had before.

Formula: D(m * grad L(f(x), y), m * g) with m_i = 1 where the entry received is not zero; labels are read from g / (1 - p)
Source: Fan et al. 2025, arXiv 2506.08435 (partial matching); Yue et al. 2023, arXiv 2206.04055
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from fedleak.attacks.counters.base import Counter, change, changed, counters
from fedleak.attacks.victim import Victim
from fedleak.defenses.random_masking import RandomMasking
from fedleak.observation import Observation


@counters.register
class RandomMaskingCounter(Counter):
    """Knows with which probability entries were dropped, and whether the others were rescaled."""

    name: ClassVar[str] = RandomMasking.name
    config: RandomMasking.Config

    def clean(self, observation: Observation) -> Observation:
        """Return the update at its expectation, which label rules read."""
        if self.config.rescale:
            return observation
        grown = {name: value / (1 - self.config.p) for name, value in change(observation).items()}
        return changed(observation, grown)

    def observe(self, victim: Victim) -> None:
        """Take the survivors back to the values that they had."""
        victim.observed = [value * (1 - self.config.p) for value in victim.observed]
        self._survived = [value != 0 for value in victim.observed]

    def guess(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Drop the same entries."""
        return [value * kept for value, kept in zip(guessed, self._survived, strict=True)]
