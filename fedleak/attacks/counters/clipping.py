"""Through clipping: clip the guess as the client clipped; the scale then need not be known.

Formula: D(grad * min(1, max_norm / |grad|), g), over all or for each tensor; by value D(grad, g) for the entries below max_norm,
and for those at max_norm what grad lacks of it, which is nothing where grad is as large or larger
Source: Geiping et al. 2020, arXiv 2003.14053 (a cosine does not see a global clip); the others are fedleak's own
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fedleak.attacks.counters.base import Counter, Countered, counters, unit
from fedleak.defenses.clipping import Clipping

_REACHED = 1 - 1e-5  # of max_norm: single precision, and the rounding of weights that a change is taken of


@counters.register
class ClippingCounter(Counter):
    """Knows the largest norm or value."""

    name: ClassVar[str] = "clipping"
    config: Clipping.Config

    def observe(self, victim: Countered) -> None:
        """Take the limit to the gradient's units."""
        self._limit = self.config.max_norm / unit(self.observation)

    def guess(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Clip the norms."""
        if math.isinf(self._limit) or self.config.scope == "value":
            return guessed
        if self.config.scope == "global":
            return shrunk(guessed, self._limit)
        return [part for value in guessed for part in shrunk([value], self._limit)]

    def compare(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Take entries that are clipped, and as large in the guess, for equal."""
        if math.isinf(self._limit) or self.config.scope != "value":
            return guessed
        found = []
        for value, seen in zip(guessed, observed, strict=True):
            fits = (seen.abs() >= _REACHED * self._limit) & (value * seen.sign() >= seen.abs())
            found.append(torch.where(fits, seen, value))
        return found


def shrunk(tensors: Sequence[Tensor], limit: float) -> list[Tensor]:
    """Return ``tensors`` scaled to an L2 norm of ``limit`` over all of them together, where it is larger."""
    square = torch.stack([value.square().sum() for value in tensors]).sum()
    # The root has no derivative at zero, where nothing is clipped.
    scale = limit / square.clamp_min(limit**2).sqrt()
    return [value * scale for value in tensors]
