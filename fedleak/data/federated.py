"""A federation's data: one source, what its images look like, and which of them each client holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedleak.data.base import ImageSet, Source, sources
from fedleak.data.images import PillowImages
from fedleak.data.partition import partition
from fedleak.data.shards import ShardSource
from fedleak.data.statistics import evenly_spaced, per_channel
from fedleak.errors import ScenarioError
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.measure import MEAN_IMAGE
from fedleak.scenario.schema import Data

FULLY_VERIFIED = 20_000
AVERAGED = 2_000
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class FederatedData:
    """Private images, split among clients.

    Attributes
    ----------
    source : Source
        Where the images come from.
    input : InputSpec
        What a model takes.
    shards : tuple of ndarray
        For each client, int64 indices into ``source.train``.
    """

    source: Source
    input: InputSpec
    shards: tuple[NDArray[np.int64], ...]

    def shard(self, client: int) -> NDArray[np.int64]:
        """Return the indices of the images that ``client`` (partition id, from 0) holds."""
        return self.shards[client]

    @property
    def largest_shard(self) -> int:
        """How many images the client with the most holds."""
        return max(len(shard) for shard in self.shards)

    def images(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Return training images as float32 (n, C, H, W) in [0, 1]."""
        return self.source.train.load([int(index) for index in indices])

    def labels(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Return training labels as int64 (n,)."""
        return torch.from_numpy(self.source.train.labels[np.asarray(indices, dtype=np.int64)])

    def mean_image(self) -> Tensor:
        """Return the public baseline (C, H, W) in [0, 1] that any reconstruction has to beat.

        The mean of the test split (at most 2,000 images, evenly spaced); without one, a flat image of the
        source's published channel means.
        """
        return self._mean_image.clone()

    def public(self) -> dict[str, Tensor]:
        """Return what is public of the data, as named tensors, for the guesses that saw no update."""
        own = self.source.public()
        return {MEAN_IMAGE: self.mean_image()} if own is None else own

    def verify(self) -> None:
        """Read every image that a client holds, and the test images; beyond 20,000 images, only their headers.

        Raises
        ------
        ScenarioError
            If one cannot be read; the message names it.
        """
        if len(self.source.train):  # the server of a deployment holds none
            _verify(self.source.train, np.concatenate(self.shards).tolist())
        if self.source.test is not None:
            _verify(self.source.test, range(len(self.source.test)))

    @cached_property
    def _mean_image(self) -> Tensor:
        if self.source.test is None:
            flat = torch.tensor(per_channel(self.source.mean, self.input.shape[0]), dtype=torch.float32)
            return flat.view(-1, 1, 1).expand(self.input.shape).clone()
        chosen = evenly_spaced(len(self.source.test), AVERAGED)
        total = torch.zeros(self.input.shape, dtype=torch.float64)
        for start in range(0, len(chosen), _CHUNK):
            total += self.source.test.load(chosen[start : start + _CHUNK]).double().sum(dim=0)
        return (total / len(chosen)).float()


def _verify(images: ImageSet, indices: Sequence[int]) -> None:
    if isinstance(images, PillowImages):
        images.verify(indices, headers_only=len(indices) > FULLY_VERIFIED)
    else:
        for start in range(0, len(indices), _CHUNK):
            images.load(indices[start : start + _CHUNK])


def federated_data(data: Data, clients: int, seed: int) -> FederatedData:
    """Open the source and split it; the same arguments give the same object for as long as the process lives.

    Parameters
    ----------
    data : Data
        The scenario's ``[data]`` table.
    clients : int
        Number of shards.
    seed : int
        The scenario's seed.

    Raises
    ------
    ScenarioError
        If the source cannot be opened or split; the message says what to do.
    """
    places = {key: place and place.expanduser().absolute() for key, place in (("path", data.path), ("shard", data.shard))}
    return _opened(data.model_copy(update=places).model_dump_json(), clients, seed)


@lru_cache(maxsize=4)
def _opened(data_json: str, clients: int, seed: int) -> FederatedData:
    data = Data.model_validate_json(data_json)
    if data.shard is not None:
        own = ShardSource(data)
        own.check(data, clients, seed)
        return FederatedData(own, _input(own, own.shape, data), own.shards)
    try:
        chosen = sources.get(data.source)
    except ScenarioError as error:
        raise ScenarioError(f"data.source: {error}") from error
    if data.columns is not None and ":" not in data.source and not chosen.takes_columns:
        named = [name for name in sources.names() if sources.get(name).takes_columns]
        raise ScenarioError(f"data.columns: data.source '{data.source}' has no columns; those that have: {', '.join(named)}")
    source = chosen(data)
    shards = partition(source.train.labels, data, clients, seed, source.natural_ids)
    if (told := source.spec(data)) is not None:
        # An attack or a defense that reads images is never given another spec: check refuses it first.
        return FederatedData(source, cast(InputSpec, told), shards)
    _check_keys(data)
    shape = source.train.shape
    if source.test is not None and (test_shape := source.test.shape) != shape:
        remedy = "data.image_size to bring all images to one size" if shape[0] == test_shape[0] else "data.channels = 1 or 3"
        raise ScenarioError(
            f"data.source '{data.source}': training images are {shape} (channels, height, width), test images {test_shape}; "
            f"give {remedy}"
        )
    return FederatedData(source, _input(source, shape, data), shards)


def _check_keys(data: Data) -> None:
    """Refuse what is said of passages where there are images."""
    if data.max_tokens != Data.model_fields["max_tokens"].default:
        raise ScenarioError(f"data.max_tokens: source '{data.source}' has images; leave it out, or take a text source")


def _input(source: Source, shape: tuple[int, int, int], data: Data) -> InputSpec:
    if data.normalize:
        mean, std = per_channel(source.mean, shape[0]), per_channel(source.std, shape[0])
        return InputSpec(shape, len(source.class_names), mean, std)
    return InputSpec(shape, len(source.class_names), (0.0,) * shape[0], (1.0,) * shape[0])
