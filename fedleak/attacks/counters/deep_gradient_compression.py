"""Through Deep Gradient Compression: match what was sent of what had accumulated, by the client's own recursion.

Formula: as through gradient pruning, with v_t in place of the gradient: u_t = momentum u_(t-1) + grad L(f_t(x), y),
v_t = v_(t-1) + u_t, both zero where round t - 1 sent, and both zero before the first of the rounds that are matched together
Source: the accumulation of Lin et al. 2018, arXiv 1712.01887; matching through it is fedleak's own

Over the rounds everything is sent once, so that rounds of the same images complete each other: set ``joined`` of ``adaptive``
to all since the client's first. Of one round alone the survivors are taken for those of a gradient, which they are in the
client's first round, and roughly wherever its images stay the same and the entries sent are as large in every round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fedleak.attacks.counters.base import Counter, Countered, counters, unit
from fedleak.attacks.counters.gradient_pruning import beyond, thresholds
from fedleak.defenses.deep_gradient_compression import DeepGradientCompression, accumulate, sparsity


@counters.register
class DeepGradientCompressionCounter(Counter):
    """Knows the recursion, and from the zeros what each round has left for later."""

    name: ClassVar[str] = "deep-gradient-compression"
    config: DeepGradientCompression.Config

    def observe(self, victim: Countered) -> None:
        """Find what was sent, and the thresholds."""
        self._earlier: DeepGradientCompressionCounter | None = None
        self._after: list[tuple[Tensor, Tensor]] = []
        self._limits = thresholds(victim.observed)
        self._sparse = sparsity(self.config, self.observation.round) > 0

    def follow(self, earlier: Counter) -> None:
        """Go on from where the earlier round ended."""
        assert isinstance(earlier, DeepGradientCompressionCounter)
        self._earlier = earlier

    def guess(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Return what would have accumulated; what of it was sent, the comparison says."""
        shrink: Tensor | float = 1.0
        if not math.isinf(self.config.max_norm):
            limit = self.config.max_norm / unit(self.observation)
            shrink = limit / torch.stack([value.square().sum() for value in guessed]).sum().clamp_min(limit**2).sqrt()
        before: Sequence[tuple[Tensor | None, Tensor | None]] = [(None, None)] * len(guessed)
        missed = 0
        if self._earlier is not None:
            before, missed = self._earlier._after, self.observation.round - 1 - self._earlier.observation.round
        found, self._after = [], []
        for value, seen, kept_before in zip(guessed, observed, before, strict=False):
            momentum, residual = accumulate(shrink * value, *kept_before, missed, self.config.momentum)
            kept = (seen == 0) & self._sparse
            self._after.append((momentum * kept if self.config.masking else momentum, residual * kept))
            found.append(residual)
        return found

    def compare(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Leave of the entries not sent what is beyond the threshold."""
        return beyond(guessed, observed, self._limits) if self._sparse else guessed
