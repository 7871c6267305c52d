"""Through DP-SGD: one image's clip in the guess, a free scale for several, and the likelihood under the noise of the steps.

Formula: D(s * grad, g) with s = min(1, max_norm / |grad|) for one image and s = <grad, g> / |grad|^2 in [0, 1] for several, whose
own norms a mean does not tell; the variance of each entry is that of noise_multiplier * max_norm / (sample_rate * B)
Source: Balunovic et al. 2022, "Bayesian Framework for Gradient Leakage", arXiv 2111.04706; the scale is fedleak's own
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fedleak.attacks.counters._noise import NoiseCounter
from fedleak.attacks.counters.base import counters, unit
from fedleak.attacks.counters.clipping import shrunk
from fedleak.defenses.dp_sgd import DPSGD, noise_std


@counters.register
class DPSGDCounter(NoiseCounter):
    """Knows the largest norm of an image's gradient and the noise of a step."""

    name: ClassVar[str] = "dp-sgd"
    config: DPSGD.Config

    def variances(self, observed: Sequence[Tensor]) -> list[Tensor]:
        """Return the noise's variance, in the gradient's units."""
        local = self.observation.local
        std = 0.0
        if local is not None:
            weights = self.observation.kind == "weights"
            steps, rate = (local.steps, local.learning_rate) if weights else (1, 1.0)
            batch = max(1, local.batch_size // len(self.observation.cohort))
            std = noise_std(self.config, batch, steps, rate) / unit(self.observation)
            path = local.path
            if weights and path is not None and not path.plain:
                std = noise_std(self.config, batch) * math.sqrt(sum(share**2 for share in path.weights))
            # Each of the batches that a step accumulates has noise of its own, for fewer images.
            std *= math.sqrt(local.accumulation)
        return [value.new_tensor(std**2) for value in observed]

    def guess(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Clip one image's gradient, or scale that of several to the observed one."""
        if not self.config.clips or math.isinf(self.config.max_norm):
            return guessed
        if self.observation.batch_size == 1 and (self.observation.local is None or self.observation.local.steps == 1):
            return [value / self.config.sample_rate for value in shrunk(guessed, self.config.max_norm)]
        product = torch.stack([(a * b).sum() for a, b in zip(guessed, observed, strict=True)]).sum()
        square = torch.stack([value.square().sum() for value in guessed]).sum()
        scale = (product / square.clamp_min(torch.finfo(square.dtype).tiny)).detach().clamp(0, 1 / self.config.sample_rate)
        return [value * scale for value in guessed]
