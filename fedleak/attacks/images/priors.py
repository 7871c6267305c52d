"""What natural images look like, as penalties: pure functions of pixels."""

from __future__ import annotations

from torch import Tensor


def total_variation(images: Tensor) -> Tensor:
    """Return the anisotropic total variation of images (B, C, H, W): mean |dx| plus mean |dy|, scalar."""
    across = (images[..., :, 1:] - images[..., :, :-1]).abs().mean()
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    return across + down
