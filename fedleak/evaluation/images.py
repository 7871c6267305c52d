"""For whoever tries an attack by hand, without a federation: which rebuilt image stands for which true one."""

from __future__ import annotations

from torch import Tensor

from fedleak.evaluation import pairing
from fedleak.modalities.image.measure import MEASURE
from fedleak.modalities.image.spec import IMAGES


def pair(rebuilt: Tensor, truth: Tensor) -> list[int | None]:
    """Assign rebuilt images (R, C, H, W) to true ones (B, C, H, W) in [0, 1], so that the sum of the MSEs is least.

    Returns
    -------
    list of int or None
        For each true image the index of its reconstruction; ``None`` where there are too few finite ones.

    Raises
    ------
    AttackError
        If the images are not of one shape.
    """
    return pairing.pair(MEASURE, {IMAGES: rebuilt}, {IMAGES: truth})
