"""Through Outpost: prune the guess by its own threshold, and trust what was received as far as its noise.

Formula: t = the prune_base % quantile of |g| over a tensor of the guess; g * (|g| > t) is matched where the entry received is not
zero, with the variance (risk * noise_base)^2, risk = min(var(w), 1), and sign(g) max(|g| - t, 0) with 0 where it is. A step with
fewer zeros than prune_base - phi % was sent as it was
Source: fedleak's own; the likelihood: Balunovic et al. 2022, arXiv 2111.04706
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fedleak.attacks.counters._noise import NoiseCounter
from fedleak.attacks.counters.base import Countered, counters
from fedleak.defenses.outpost import Outpost, risks

_SLACK = 0.01


@counters.register
class OutpostCounter(NoiseCounter):
    """Knows the rule, and computes the risk from the weights that were sent."""

    name: ClassVar[str] = "outpost"
    config: Outpost.Config

    def observe(self, victim: Countered) -> None:
        """Tell whether the step was perturbed, and which entries survived."""
        config, steps = self.config, self.observation.local.steps if self.observation.local is not None else 1
        zeros = sum(int((value == 0).sum()) for value in victim.observed) / sum(value.numel() for value in victim.observed)
        applied = bool(config.prune_base or config.noise_base)
        if applied and steps == 1:
            applied = zeros >= (config.prune_base - config.phi) / 100 - _SLACK
        self._applied = applied
        self._kept = [(value != 0) | (not applied) for value in victim.observed]
        risk = risks(victim.parameters) if applied else {}
        self._deviations = [risk.get(name, 0.0) * config.noise_base / steps**0.5 for name in victim.parameters]
        super().observe(victim)

    def variances(self, observed: Sequence[Tensor]) -> list[Tensor]:
        """Return the noise's variance on the entries that survived."""
        return [
            torch.full_like(value, deviation**2) * kept
            for value, deviation, kept in zip(observed, self._deviations, self._kept, strict=True)
        ]

    def guess(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Prune by the guess's own threshold: hard where something was received, by what is too large where nothing was."""
        return [
            prune(value, kept, self.config.prune_base / 100) if self._applied else value
            for value, kept in zip(guessed, self._kept, strict=True)
        ]


def prune(value: Tensor, kept: Tensor, ratio: float) -> Tensor:
    """Return what is left of a guess (...) below whose threshold the share ``ratio`` of its entries lies.

    Parameters
    ----------
    kept : Tensor
        Boolean: where an entry was received. There the guess is zero below the threshold; elsewhere it is what exceeds it.
    """
    threshold = value.detach().abs().flatten().kthvalue(max(1, int(ratio * value.numel()))).values if ratio else 0.0
    hard = value * (value.detach().abs() > threshold)
    soft = value.sign() * (value.abs() - threshold).relu()
    return torch.where(kept, hard, soft)
