"""From real-valued class counts, or a signal that is lower for likelier classes, to one label for each image."""

from __future__ import annotations

import numpy as np
from torch import Tensor


def labels_from_counts(counts: Tensor, size: int) -> tuple[int, ...]:
    """Return the sorted labels whose counts are nearest to ``counts``.

    The result is the non-negative integer vector with sum ``size`` of least squared distance. Each image goes to the
    class whose count falls furthest short, which is optimal because the distance is a sum of convex functions of one
    count each; between equals the lower class wins.

    Parameters
    ----------
    counts : Tensor
        (N,) estimates, one for each class; any sign and any sum.
    size : int
        Number of images B.
    """
    estimate = counts.detach().double().cpu().numpy()
    whole = np.zeros(len(estimate), dtype=np.int64)
    for _ in range(size):
        whole[np.argmax(estimate - whole)] += 1
    return tuple(int(label) for label in np.repeat(np.arange(len(whole)), whole))


def labels_by_impact(signal: Tensor, impact: float, size: int, present: Tensor) -> tuple[int, ...]:
    """Return sorted labels: those surely present once, then the class of the lowest signal, again and again.

    Each label that is taken raises its class's signal by ``-impact``.

    Parameters
    ----------
    signal : Tensor
        (N,) values, lower for classes with more images.
    impact : float
        What one image adds to its class's signal; negative.
    size : int
        Number of images B.
    present : Tensor
        (N,) of bool: classes that hold one image at least. Noise can mark more than B; the lowest are then kept.
    """
    left = signal.detach().double().clone()
    labels = [int(label) for label in left.argsort(stable=True) if present[label]][:size]
    left[labels] -= impact
    while len(labels) < size:
        labels.append(int(left.argmin()))
        left[labels[-1]] -= impact
    return tuple(sorted(labels))
