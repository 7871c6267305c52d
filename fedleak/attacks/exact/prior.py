"""A Gaussian prior on a layer's input, for gradients with noise: how far values and their neighbours' differences go.

Formula: (u - center)^T R (u - center), R = noise^2 (I / spread^2 + L / difference^2), L the graph Laplacian of the pixel grid.
Source: Tikhonov regularisation; the noise is estimated from the residual of the unregularised solution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianPrior:
    """The precision matrix R, the same for all channels.

    Attributes
    ----------
    level : float
        Weight of each value's squared distance from the center.
    smoothness : float
        Weight of each squared difference of neighbours, down and across.
    """

    level: float
    smoothness: float = 0.0

    def apply(self, u: Tensor) -> Tensor:
        """Return R u for ``u`` (C, H, W)."""
        down, across = u.diff(dim=1), u.diff(dim=2)
        laplacian = torch.zeros_like(u)
        laplacian[:, 1:] += down
        laplacian[:, :-1] -= down
        laplacian[:, :, 1:] += across
        laplacian[:, :, :-1] -= across
        return self.level * u + self.smoothness * laplacian

    def matrix(self, height: int, width: int, like: Tensor) -> Tensor:
        """Return R as (H * W, H * W)."""
        basis = torch.eye(height * width, dtype=like.dtype, device=like.device).view(-1, height, width)
        return self.apply(basis).reshape(height * width, -1)

    def diagonal(self) -> float:
        """Return the diagonal of R away from the border."""
        return self.level + 4 * self.smoothness
