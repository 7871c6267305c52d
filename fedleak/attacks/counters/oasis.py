"""Through OASIS: the guess gets the same copies as the client's images, which add nothing unknown.

Formula: D(grad L(f(x'), y'), g) with x' = x + {t(x)}, y' the label of x for each; the t are the defense's own
Source: fedleak's own
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from fedleak.attacks.counters.base import Counter, counters
from fedleak.defenses.oasis import Oasis, extend


@counters.register
class OasisCounter(Counter):
    """Knows which copies were added."""

    name: ClassVar[str] = Oasis.name
    config: Oasis.Config

    def batch(self, inputs: Tensor, targets: Tensor, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Add the copies, whose uncovered parts are black pixels, not zero inputs."""
        spec = self.observation.input
        images, targets = extend(spec.denormalize(inputs), targets, self.config.transforms)
        return spec.normalize(images), targets
