"""What every source of private images is: a training split, perhaps a public test split, and names for the classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedleak.registry import Registry
from fedleak.scenario.schema import Data


class ImageSet(ABC):
    """Labelled images, decoded only when asked for.

    Attributes
    ----------
    labels : ndarray
        (N,) int64 class indices.
    """

    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def load(self, indices: Sequence[int]) -> Tensor:
        """Return the images at ``indices`` as float32 (n, C, H, W) in [0, 1].

        Raises
        ------
        ScenarioError
            If an image cannot be read; the message names it.
        """


class Source(ABC):
    """A named source of private images, opened from the scenario's ``[data]`` table.

    Attributes
    ----------
    train : ImageSet
        What is split among the clients.
    test : ImageSet or None
        Public images: the server's test accuracy, the mean-image baseline, and surrogate data.
    class_names : sequence of str
        One for each class index.
    mean, std : tuple of float
        Published channel statistics of the source, in units of the [0, 1] range.
    """

    name: ClassVar[str]
    train: ImageSet
    test: ImageSet | None = None
    class_names: Sequence[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @abstractmethod
    def __init__(self, data: Data) -> None:
        """Open the source.

        Raises
        ------
        ScenarioError
            If a file is missing, a folder is empty, or a key that the source needs is not given.
        """


sources: Registry[type[Source]] = Registry("data source", "fedleak.data", Source)
