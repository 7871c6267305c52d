"""Identification: whether a reconstruction is nearer to its true example than to any other example of the client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from fedleak.data.statistics import evenly_spaced
from fedleak.modalities.base import Batch, Measure, select, size
from fedleak.modalities.image import InputSpec
from fedleak.models.inspect import last_linear

POOL: Final = 256
"""Examples of a shard that are compared in feature space: the true ones, and of the others so many evenly spaced ones at most."""

_CHUNK: Final = 64
_INDISTINCT: Final = 1e-6

Features = Callable[[Batch], Tensor]


def identified_by_cost(measure: Measure, rebuilt: Batch, shard: Batch, positions: Sequence[int]) -> list[bool | None]:
    """Say of each reconstruction whether no example of the shard is nearer to it than its true one, by what pairing costs.

    Parameters
    ----------
    measure : Measure
        Says what a pair costs.
    rebuilt : Batch
        R examples.
    shard : Batch
        S examples.
    positions : sequence of int
        Position in ``shard`` of each reconstruction's true example.

    Returns
    -------
    list of bool or None
        ``None`` where the shard holds no other example. A twin of the true example counts as the true one.
    """
    if size(shard) < 2 or not size(rebuilt):
        return [None] * size(rebuilt)
    return _nearest(measure.cost(shard, rebuilt), [[position] for position in positions])


def identified_by_features(rebuilt: Batch, shard: Batch, positions: Sequence[int], features: Features) -> list[bool | None]:
    """Say the same by the Euclidean distance of features.

    Parameters
    ----------
    rebuilt, shard, positions
        See :func:`identified_by_cost`. Of a large shard at most :data:`POOL` examples beside the true ones are compared.
    features : callable
        From a batch of N examples to features (N, D).

    Returns
    -------
    list of bool or None
        ``None`` also where the features are not finite, or the same for all examples, as those of dead ReLUs.
    """
    if size(shard) < 2 or not size(rebuilt):
        return [None] * size(rebuilt)
    pool = sorted({*positions, *evenly_spaced(size(shard), POOL)})
    known, found = (features(batch).to(torch.float64) for batch in (select(shard, pool), rebuilt))
    spread = (known - known[0]).abs().max()
    if not known.isfinite().all() or spread <= _INDISTINCT * known.abs().max():
        return [None] * size(rebuilt)
    # Equal examples may differ in the last bits of their features, by their place in the batch.
    content = sorted(rebuilt)
    twins: dict[bytes, list[int]] = {}
    for place, at in enumerate(pool):
        twins.setdefault(_bytes(shard, content, at), []).append(place)
    own = [twins[_bytes(shard, content, at)] for at in positions]
    distances = torch.cdist(known, found, compute_mode="donot_use_mm_for_euclid_dist")
    return [
        near if bool(column.isfinite().all()) else None
        for near, column in zip(_nearest(distances, own), distances.T, strict=True)
    ]


def _bytes(batch: Batch, content: Iterable[str], at: int) -> bytes:
    return b"".join(batch[name][at].numpy().tobytes() for name in content)


def _nearest(distances: Tensor, own: Sequence[Sequence[int]]) -> list[bool | None]:
    columns = zip(distances.T, own, strict=True)
    return [bool(column[list(places)].min() <= column.min()) for column, places in columns]


class PenultimateFeatures:
    """What a network's classifier is given: the input of the ``nn.Linear`` that is executed last; without one, the logits.

    Parameters
    ----------
    model : Module
        Put into eval mode here.
    input : Spec
        What it takes.
    """

    def __init__(self, model: nn.Module, input: InputSpec) -> None:
        classifier = last_linear(model, input)
        self._model = model.eval()
        self._input = input
        self._classifier = classifier[1] if classifier is not None else None

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Return the features (N, D) of a batch, brought here to possible examples where it holds others."""
        chunks = (range(start, min(start + _CHUNK, size(batch))) for start in range(0, size(batch), _CHUNK))
        parts = [self._of(self._input.clamp(select(batch, chunk))) for chunk in chunks]
        return torch.cat(parts) if parts else torch.empty(0, 0)

    def _of(self, batch: Batch) -> Tensor:
        taken: list[Tensor] = []
        handles = []
        if self._classifier is not None:
            handles.append(self._classifier.register_forward_pre_hook(lambda _, given: taken.append(given[0])))
        try:
            output: Tensor = self._model(self._input.inputs(batch))
        finally:
            for handle in handles:
                handle.remove()
        return (taken[-1] if taken else output).flatten(1)
