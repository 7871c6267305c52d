"""Several updates of one client matched together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fedleak.attacks.victims.base import Victim


class JointVictim(Victim):
    """One client's updates of several rounds as one, on the presumption that all are of the same images.

    Parameters
    ----------
    latest : Victim
        The update of the present round; its unknowns and labels are the ones optimised.
    earlier : sequence of Victim
        Those of rounds before, at the parameters of their own rounds.
    """

    def __init__(self, latest: Victim, earlier: Sequence[Victim]) -> None:
        self.__dict__.update(latest.__dict__)
        self._victims = [*earlier, latest]
        self.observed = [value for victim in self._victims for value in victim.observed]
        for before, after in pairwise(self._victims):
            for one, other in zip(before.counters, after.counters, strict=True):
                other.follow(one)
        for victim in self._victims:
            victim.joined = len(self._victims)

    def gradient(self, inputs: Tensor, targets: Tensor) -> list[Tensor]:
        """Return the gradients of all rounds, one after the other, by parameter."""
        return [value for victim in self._victims for value in victim.gradient(inputs, targets)]

    def compared(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Compare each round's guess."""
        found, first = [], 0
        for victim in self._victims:
            part = slice(first, first + len(victim.observed))
            found += victim.compared(guessed[part], observed[part])
            first = part.stop
        return found

    def noise(self) -> list[Tensor] | None:
        """Return the variances in all rounds."""
        found = [victim.noise() for victim in self._victims]
        if all(variances is None for variances in found):
            return None
        return [
            value
            for victim, variances in zip(self._victims, found, strict=True)
            for value in variances or [torch.zeros_like(value) for value in victim.observed]
        ]

    def start(self, generator: torch.Generator) -> list[Tensor]:
        """Draw the unknowns of the counters of every round."""
        return [other for victim in self._victims for other in victim.start(generator)]

    def take(self, others: Sequence[Tensor]) -> None:
        """Use these unknowns of the counters of every round."""
        first = 0
        for victim in self._victims:
            count = sum(len(own) for own in victim._others)
            victim.take(others[first : first + count])
            first += count

    def restore(self, images: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Undo the defenses of the present round, whose unknowns are the last."""
        own = len(others) - sum(len(unknowns) for victim in self._victims[:-1] for unknowns in victim._others)
        return self._victims[-1].restore(images, others[len(others) - own :])

    def penalty(self) -> Tensor | float:
        """Return the sum over the rounds."""
        return sum((victim.penalty() for victim in self._victims), start=0.0)
