"""Through gradient pruning: match the entries that survived; of the others it is known that they are smaller than these.

Formula: D(m * grad L(f(x), y) + (1 - m) * excess, g) with m_i = 1 where the entry received is not zero, and where it is zero
excess_i = what of grad_i L is beyond [-t, t], t the smallest magnitude that survived in its tensor, or in all for scope "global"
Source: Balunovic et al. 2022, arXiv 2111.04706 (survivors alone); the inequality is fedleak's own
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fedleak.attacks.counters.base import Counter, Countered, counters
from fedleak.defenses.gradient_pruning import GradientPruning


@counters.register
class GradientPruningCounter(Counter):
    """Knows which entries were pruned, and below which magnitude."""

    name: ClassVar[str] = "gradient-pruning"
    config: GradientPruning.Config

    def observe(self, victim: Countered) -> None:
        """Find the thresholds."""
        self._limits = thresholds(victim.observed, together=self.config.scope == "global")

    def compare(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Leave of the pruned entries what is beyond the threshold."""
        return beyond(guessed, observed, self._limits) if self.config.ratio > 0 else guessed


def thresholds(observed: Sequence[Tensor], together: bool = False) -> list[Tensor]:
    """Return the smallest magnitude above zero of each tensor, or of all together; infinite where all is zero."""
    lowest = [value.abs().where(value != 0, torch.inf).amin() for value in observed if value.numel()]
    if together:
        return [torch.stack(lowest).amin()] * len(observed)
    found = iter(lowest)
    return [next(found) if value.numel() else value.new_zeros(()) for value in observed]


def beyond(guessed: Sequence[Tensor], observed: Sequence[Tensor], limits: Sequence[Tensor]) -> list[Tensor]:
    """Return the guess, with the entries that were observed as zero reduced by as much as the limit on them allows.

    Tensors beyond those with a limit stay: a later counter may match more than the parameters' entries.
    """
    found = [
        torch.where(seen != 0, value, value - value.clamp(-limit, limit))
        for value, seen, limit in zip(guessed, observed, limits, strict=False)
    ]
    return [*found, *guessed[len(limits) :]]
