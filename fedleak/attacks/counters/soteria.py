"""Through Soteria: leave out the columns of the classifier that it has zeroed, or the whole layer.

Formula: D(m * grad L(f(x), y), m * g) with m = 0 in the columns of the classifier's weight where g is zero, 1 elsewhere
Source: Balunovic et al. 2022, "Bayesian Framework for Gradient Leakage", arXiv 2111.04706 (the whole layer); fedleak's own
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fedleak.attacks.counters.base import Counter, Countered, counters
from fedleak.defenses.soteria import Soteria
from fedleak.errors import AttackError
from fedleak.models.inspect import last_linear


@counters.register
class SoteriaCounter(Counter):
    """Sees which columns were zeroed; those of features that are zero by themselves go with them.

    Ways: ``columns`` leaves out the columns that are zero; ``leave-out`` the classifier's weight.
    """

    name: ClassVar[str] = "soteria"
    ways = ("columns", "leave-out")
    config: Soteria.Config

    def observe(self, victim: Countered) -> None:
        """Find the columns.

        Raises
        ------
        AttackError
            If the network that is attacked has no classifier.
        """
        self._place, self._kept = -1, torch.ones(())
        if not self.config.pruning_rate:
            return
        found = last_linear(victim.network, victim.input)
        if found is None:
            raise AttackError(
                "the network that is attacked executes no nn.Linear, but the clients' defense 'soteria' prunes one; "
                "attack the network that the server built"
            )
        self._place = list(victim.parameters).index(f"{found[0]}.weight" if found[0] else "weight")
        weight = victim.observed[self._place]
        kept = (weight != 0).any(0) if self.way == "columns" else torch.zeros(1, dtype=torch.bool, device=weight.device)
        self._kept = kept.to(weight)
        victim.observed = self.guess(victim.observed, victim.observed)

    def guess(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Zero the same columns."""
        return [value * self._kept if place == self._place else value for place, value in enumerate(guessed)]
