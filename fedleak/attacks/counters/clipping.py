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

from fedleak.attacks.counters.base import Counter, counters, unit
from fedleak.attacks.victim import Victim
from fedleak.defenses.clipping import Clipping

_REACHED = 1 - 1e-5  # of max_norm: single precision, and the rounding of weights that a change is taken of


@counters.register
class ClippingCounter(Counter):
    """Knows the largest norm or value."""

    name: ClassVar[str] = Clipping.name
    config: Clipping.Config

    def observe(self, victim: Victim) -> None:
        """Take the limit to the gradient's units."""
        self._limit = self.config.max_norm / unit(self.observation)

    def guess(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Clip the norms."""
        if math.isinf(self._limit) or self.config.scope == "value":
            return guessed
        squares = [value.square().sum() for value in guessed]
        if self.config.scope == "global":
            squares = [torch.stack(squares).sum()] * len(guessed)
        return [value * self._shrink(square) for value, square in zip(guessed, squares, strict=True)]

    def compare(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Take entries that are clipped, and as large in the guess, for equal."""
        if math.isinf(self._limit) or self.config.scope != "value":
            return guessed
        found = []
        for value, seen in zip(guessed, observed, strict=True):
            fits = (seen.abs() >= _REACHED * self._limit) & (value * seen.sign() >= seen.abs())
            found.append(torch.where(fits, seen, value))
        return found

    def _shrink(self, square: Tensor) -> Tensor:
        # The root has no derivative at zero, where nothing is clipped.
        return self._limit / square.clamp_min(self._limit**2).sqrt()
