"""Through GradDefense: find the slices that it has perturbed by their size, and trust the others.

Formula: entry k has the noise's variance unless the root mean squares of the 48 entries up to it and of those from it on are
below 0.6 scale, which noise alone is not; the likelihood of the update is then as for Gaussian noise
Source: fedleak's own; the likelihood: Balunovic et al. 2022, arXiv 2111.04706
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fedleak.attacks.counters._noise import NoiseCounter
from fedleak.attacks.counters.base import counters
from fedleak.defenses.grad_defense import GradDefense

WINDOW = 48
QUIET = 0.6
"""Root mean square of a window, in units of the noise's, below which it holds no noise."""


@counters.register
class GradDefenseCounter(NoiseCounter):
    """Knows the noise's standard deviation and that it lies on runs of entries, but not on which."""

    name: ClassVar[str] = "grad-defense"
    config: GradDefense.Config

    def variances(self, observed: Sequence[Tensor]) -> list[Tensor]:
        """Return the noise's variance on the entries that are not seen to be without."""
        steps = self.observation.local.steps if self.observation.local is not None else 1
        deviation = self.config.scale / steps**0.5
        flat = torch.cat([value.flatten() for value in observed])
        loud = (~quiet(flat, QUIET * deviation)).to(flat) * deviation**2
        parts = torch.split(loud, [value.numel() for value in observed])
        return [part.view(value.shape) for part, value in zip(parts, observed, strict=True)]


def quiet(values: Tensor, level: float) -> Tensor:
    """Return where ``values`` (n,) are amid small ones: the root mean squares before and after are below ``level``."""
    size = min(WINDOW, len(values))
    total = torch.cat([values.new_zeros(1, dtype=torch.float64), values.double().square().cumsum(0)])
    mean = (total[size:] - total[:-size]) / size  # of the windows that begin at each place
    before = torch.cat([mean[:1].expand(size - 1), mean])
    after = torch.cat([mean, mean[-1:].expand(size - 1)])
    return torch.maximum(before, after) < level**2
