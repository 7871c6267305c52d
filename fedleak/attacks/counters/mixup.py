"""Through mixup: the images before they were mixed are the unknowns, and who was mixed with whom is optimised with them.

Formula: D(grad L(f(M x), M y), g), M = lambda I + (1 - lambda) P, lambda = (1 + sigmoid(a)) / 2, P doubly stochastic (Sinkhorn)
Source: fedleak's own; soft labels of a gradient as in "Towards Eliminating Hard Label Constraints in Gradient Inversion
Attacks", ICLR 2024, arXiv 2402.03124; Sinkhorn networks, arXiv 1802.08665

(lambda, P) and (1 - lambda, inverse of P) are the same batch, so that lambda need not be below 1/2. M can be inverted, and the
images be told, unless lambda is 1/2 and images swap in cycles of even length; near it the error of the mixtures grows by up to
1 / (2 lambda - 1). The sum of the mixed labels is that of the true ones, so that rules which count labels read them as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fedleak.attacks.counters.base import Counter, Countered, counters
from fedleak.defenses.mixup import Mixup, mix

_ROUNDS = 20  # of scaling rows and columns


@counters.register
class MixupCounter(Counter):
    """Knows that pairs were mixed; neither who with whom nor in which shares."""

    name: ClassVar[str] = "mixup"
    config: Mixup.Config

    def start(self, victim: Countered, generator: torch.Generator) -> list[Tensor]:
        """Return the share (), and scores (B, B) of who was mixed with whom."""
        if self.config.alpha == 0:
            return []
        images = self.observation.batch_size
        return [torch.zeros(()), 0.5 * torch.randn(images, images, generator=generator)]

    def batch(self, inputs: Tensor, targets: Tensor, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Mix as the guessed share and partners say."""
        if self.config.alpha == 0:
            return inputs, targets
        share = (1 + others[0].sigmoid()) / 2
        partners = doubly_stochastic(others[1])
        return mix(inputs, torch.einsum("ij,jchw->ichw", partners, inputs), share), mix(targets, partners @ targets, share)


def doubly_stochastic(scores: Tensor) -> Tensor:
    """Return a matrix (B, B) whose rows and columns sum to 1, from scores without bounds; differentiable."""
    for _ in range(_ROUNDS):
        scores = scores - scores.logsumexp(1, keepdim=True)
        scores = scores - scores.logsumexp(0, keepdim=True)
    return scores.exp()
