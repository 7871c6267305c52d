"""Identification: whether a reconstruction is nearer to its true image than to any other image of the client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from fedleak.data.statistics import evenly_spaced
from fedleak.evaluation.pairing import mse_matrix
from fedleak.modalities.image import InputSpec
from fedleak.models.inspect import last_linear

POOL: Final = 256
"""Images of a shard that are compared in feature space: the true ones, and of the others so many evenly spaced ones at most."""

_CHUNK: Final = 64
_INDISTINCT: Final = 1e-6

Features = Callable[[Tensor], Tensor]


def identified_by_pixels(rebuilt: Tensor, shard: Tensor, positions: Sequence[int]) -> list[bool | None]:
    """Say of each reconstruction whether no image of the shard is nearer to it than its true one, by the MSE of pixels.

    Parameters
    ----------
    rebuilt : Tensor
        (R, C, H, W), clamped to [0, 1].
    shard : Tensor
        (S, C, H, W) in [0, 1].
    positions : sequence of int
        Position in ``shard`` of each reconstruction's true image.

    Returns
    -------
    list of bool or None
        ``None`` where the shard holds no other image. A twin of the true image counts as the true one.
    """
    if len(shard) < 2:
        return [None] * len(rebuilt)
    return _nearest(mse_matrix(shard, rebuilt), [[position] for position in positions])


def identified_by_features(rebuilt: Tensor, shard: Tensor, positions: Sequence[int], features: Features) -> list[bool | None]:
    """Say the same by the Euclidean distance of features.

    Parameters
    ----------
    rebuilt, shard, positions
        See :func:`identified_by_pixels`. Of a large shard at most :data:`POOL` images beside the true ones are compared.
    features : callable
        From images (N, C, H, W) in [0, 1] to features (N, D).

    Returns
    -------
    list of bool or None
        ``None`` also where the features are not finite, or the same for all images, as those of dead ReLUs.
    """
    if len(shard) < 2 or not len(rebuilt):
        return [None] * len(rebuilt)
    pool = sorted({*positions, *evenly_spaced(len(shard), POOL)})
    known, found = (features(images).to(torch.float64) for images in (shard[pool], rebuilt))
    spread = (known - known[0]).abs().max()
    if not known.isfinite().all() or spread <= _INDISTINCT * known.abs().max():
        return [None] * len(rebuilt)
    # Equal images may differ in the last bits of their features, by their place in the batch.
    twins: dict[bytes, list[int]] = {}
    for place, at in enumerate(pool):
        twins.setdefault(shard[at].numpy().tobytes(), []).append(place)
    own = [twins[shard[at].numpy().tobytes()] for at in positions]
    distances = torch.cdist(known, found, compute_mode="donot_use_mm_for_euclid_dist")
    return [
        near if bool(column.isfinite().all()) else None
        for near, column in zip(_nearest(distances, own), distances.T, strict=True)
    ]


def _nearest(distances: Tensor, own: Sequence[Sequence[int]]) -> list[bool | None]:
    columns = zip(distances.T, own, strict=True)
    return [bool(column[list(places)].min() <= column.min()) for column, places in columns]


class PenultimateFeatures:
    """What a network's classifier is given: the input of the ``nn.Linear`` that is executed last; without one, the logits.

    Parameters
    ----------
    model : Module
        Put into eval mode here.
    input : InputSpec
        What it takes.
    """

    def __init__(self, model: nn.Module, input: InputSpec) -> None:
        classifier = last_linear(model, input)
        self._model = model.eval()
        self._input = input
        self._classifier = classifier[1] if classifier is not None else None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features (N, D) of images (N, C, H, W), clamped to [0, 1] here."""
        parts = [self._of(chunk.float().clamp(0, 1)) for chunk in torch.split(images.detach(), _CHUNK)]
        return torch.cat(parts) if parts else torch.empty(0, 0)

    def _of(self, images: Tensor) -> Tensor:
        taken: list[Tensor] = []
        handles = []
        if self._classifier is not None:
            handles.append(self._classifier.register_forward_pre_hook(lambda _, given: taken.append(given[0])))
        try:
            output: Tensor = self._model(self._input.normalize(images))
        finally:
            for handle in handles:
                handle.remove()
        return (taken[-1] if taken else output).flatten(1)
