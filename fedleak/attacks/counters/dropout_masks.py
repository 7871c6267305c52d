"""Dropout masks in closed form: what the zeros of a linear layer's gradient say of its input, image by image.

With one image, dW = d (m * h)^T: a column is zero where its feature was dropped. With B images, dW = D^T H with the rows d_b of D
and the masked features m_b * h_b in H's. Dropout leaves some columns with a single image: all columns of an image alone are
parallel to its d_b, those of several images are not parallel to each other. So the d_b stand out as the directions that several
columns share, and H = (D^+)^T dW then shows each image's mask. This is the sparsity by which SPEAR (arXiv 2403.03945) separates
the images behind a ReLU, with the sampling of candidates made unnecessary.
"""

from __future__ import annotations

import torch
from torch import Tensor

ALIKE = (3e-6, 1e-4, 1e-3)
"""Distances of unit vectors below which two columns are parallel, tried in turn; single precision gives the first."""
LEAST = 2
"""Columns that must share a direction."""
RESIDUAL = 1e-3
"""Of the gradient's norm, what the images found may leave unexplained."""
SURPRISE = 0.1
"""Share of features by which the dropped ones may fall short of their probability."""
ZERO = 1e-4
"""Of an image's median feature, below which a feature counts as dropped."""


def read_masks(weight: Tensor, count: int, p: float) -> Tensor | None:
    """Return the masks (count, F) of a linear layer's input, 1 or 0, or ``None`` where its gradient does not tell them.

    Images are in the order of the only output whose gradient is negative, which is the label where the layer is the classifier
    under cross-entropy; features that are zero by themselves count as dropped, which makes no difference to the gradient.

    Parameters
    ----------
    weight : Tensor
        Gradient of the layer's weight (N, F), of the mean loss over ``count`` images.
    p : float
        Probability that a feature was dropped.
    """
    if count == 1:
        kept = (weight != 0).any(0)[None]
        return kept.to(weight) if bool(kept.any()) and _dropped(kept, p) else None
    for distance in ALIKE:
        directions = shared_directions(weight.double(), count, distance)
        if directions is None:
            continue
        features = torch.linalg.lstsq(directions.T, weight.double()).solution
        explained = float((weight - directions.T @ features).norm()) <= RESIDUAL * float(weight.norm())
        sizes = features.abs()
        typical = torch.stack([row[row > ZERO * row.max()].median() for row in sizes])
        kept = sizes > ZERO * typical[:, None]
        if explained and _dropped(kept, p):
            masks: Tensor = kept.to(weight)
            return masks
    return None


def shared_directions(weight: Tensor, count: int, distance: float) -> Tensor | None:
    """Return the ``count`` unit vectors (count, N) that most columns of ``weight`` (N, F) share, or ``None``.

    Each has one negative entry, as softmax probabilities minus a one-hot label, and they are sorted by its place.
    """
    lengths = weight.norm(dim=0)
    columns = weight[:, lengths > 1e-6 * lengths.max()].T
    # Entries of a cross-entropy's gradient sum to zero over the outputs: at most N - 1 images are told apart.
    if count >= len(weight) or len(columns) < LEAST * count:
        return None
    units = columns / columns.norm(dim=1, keepdim=True)
    # The sign of a feature is unknown; that of d_b is not: one entry is negative.
    units = units * torch.where((units < 0).sum(1) * 2 > len(weight), -1.0, 1.0)[:, None]
    units = units[(units < 0).sum(1) == 1]
    near = torch.cdist(units, units, compute_mode="donot_use_mm_for_euclid_dist") < distance
    found: list[Tensor] = []
    while len(found) < count and len(units):
        votes = near.sum(1)
        best = int(votes.argmax())
        if int(votes[best]) < LEAST:
            return None
        members = near[best]
        direction = units[members].mean(0)
        found.append(direction / direction.norm())
        units, near = units[~members], near[~members][:, ~members]
    if len(found) < count:
        return None
    return torch.stack(sorted(found, key=lambda direction: int(direction.argmin())))


def _dropped(kept: Tensor, p: float) -> bool:
    """Return whether as many features are dropped as are to be expected; more may be, as some are zero by themselves."""
    return bool(((~kept).double().mean(1) > p - SURPRISE).all())
