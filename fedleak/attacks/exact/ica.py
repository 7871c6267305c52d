"""Independent component analysis of mixed images, on the differences of neighbouring pixels.

Formula: maximise sum_i E[log cosh(w_i z)] distance from the Gaussian's over orthonormal w, z the whitened differences:
W <- orth(E[tanh(W z) z^T] - diag(E[1 - tanh(W z)^2]) W).
Source: Hyvarinen 1999, "Fast and robust fixed-point algorithms for ICA" (IEEE TNN 10(3)); on gradients: arXiv 2209.05578.
"""

from __future__ import annotations

import torch
from torch import Tensor


def differences(rows: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return the vertical and horizontal differences of neighbours in flat images (B, D), flat again.

    They mix as the images do, but are sparse and nearly independent between images, which pixels are not.
    """
    images = rows.reshape(-1, *shape)
    vertical = images[:, :, 1:] - images[:, :, :-1]
    horizontal = images[..., 1:] - images[..., :-1]
    return torch.cat([vertical.flatten(1), horizontal.flatten(1)], dim=1)


def unmix(rows: Tensor, shape: tuple[int, int, int], generator: torch.Generator, iterations: int = 200) -> Tensor:
    """Return the matrix (B, B) that turns mixed images into separate ones, each up to scale and sign.

    Parameters
    ----------
    rows : Tensor
        (B, D) linearly independent mixtures, float64.
    shape : tuple of int
        (C, H, W) of one image, D = C H W.
    generator : Generator
        Draws the start.
    iterations : int
        At most.
    """
    signals = differences(rows, shape)
    left, size, _ = torch.linalg.svd(signals, full_matrices=False)
    count, length = signals.shape
    whitening = (left / size.clamp_min(1e-12 * size[0])).mT * length**0.5
    white = whitening @ signals
    start = torch.randn(count, count, generator=generator, dtype=torch.float64).to(rows)
    rotation = torch.linalg.qr(start)[0]
    for _ in range(iterations):
        squashed = torch.tanh(rotation @ white)
        moved = squashed @ white.mT / length - (1 - squashed.square()).mean(1)[:, None] * rotation
        u, _, v = torch.linalg.svd(moved)
        before, rotation = rotation, u @ v
        if float((1 - (rotation * before).sum(1).abs()).max()) < 1e-9:
            break
    unmixing: Tensor = rotation @ whitening
    return unmixing
