"""Through ATS: the transformed images are rebuilt, and the transformation of each, one of a few, is undone where it fits best.

Formula: x = argmin over u and t in policy of |t(x) - z|^2 / n + lambda |u|^2 / n + box, x = decode(u), z the image rebuilt;
u are natural frequencies, so that what the transformation pushed out of the picture becomes what its surroundings suggest
Source: fedleak's own; that ATS's transformed image leaks is Balunovic et al. 2022, arXiv 2111.04706

A policy has 8 equally likely transformations, the hybrid 16. The black that translation leaves and the grey that contrast makes
of it tell them apart. What was pushed out is not in the gradient: "3-1-7" shows less than half of an image of 32 x 32 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fedleak.attacks.counters.base import Counter, counters
from fedleak.attacks.images.coordinates import FrequencyCoordinates
from fedleak.defenses.ats import Ats, Draw, draws, transform

_PRIOR = 1e-3  # weight of the frequencies, about the variance of the error of an image that was rebuilt well
_BOX = 16.0
_STEPS = 100


@counters.register
class AtsCounter(Counter):
    """Knows the policy, and not what was drawn for which image."""

    name: ClassVar[str] = "ats"
    config: Ats.Config

    def restore(self, images: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Undo for each image the transformation that explains it best."""
        possible = draws(self.config.policy)
        if not possible:
            return images
        found = [self._undo(images, draw) for draw in possible]
        best = torch.stack([misfit for _, misfit in found]).argmin(0)
        return torch.stack([found[draw][0][image] for image, draw in enumerate(best.tolist())])

    def _undo(self, images: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Return the most natural images (B, C, H, W) that the transformation takes to ``images``, and their misfits (B,)."""
        coordinates = FrequencyCoordinates(self.observation.input, images)
        variables = torch.zeros(images.shape).to(images).requires_grad_()
        optimiser = torch.optim.LBFGS([variables], max_iter=_STEPS, line_search_fn="strong_wolfe")
        images = images.clamp(0, 1)

        def misfits() -> Tensor:
            pixels = coordinates.decode(variables)
            outside = ((pixels - 1).relu() + (-pixels).relu()).square().mean((1, 2, 3))
            fit = (transform(pixels, *draw) - images).square().mean((1, 2, 3))
            return fit + _PRIOR * variables.square().mean((1, 2, 3)) + _BOX * outside

        def closure() -> float:
            optimiser.zero_grad()
            loss = misfits().sum()
            torch.autograd.backward(loss)
            return float(loss.detach())

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            return coordinates.decode(variables), misfits()
