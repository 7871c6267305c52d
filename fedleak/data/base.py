"""What every source of private images is: a training split, perhaps a public test split, and names for the classes.

``data.source = "mine:Own"`` is the class ``Own`` of mine.py, in the folder that you run from or on PYTHONPATH: a subclass of
fedleak.data.Source. It is called with the scenario's table [data] alone (``path``, ``image_size``, ``channels``, ``columns`` and
the others are its attributes, ``None`` where the scenario gives none), and sets these attributes of its own::

    train         an ImageSet: labels, (N,) int64 from 0, and load(indices), float32 (n, channels, height, width) in [0, 1]
    test          another, of public images, or None
    class_names   a name for each class
    mean, std     of each channel, in units of [0, 1]

An own model is told what this data is like: ``num_classes``, ``input_shape``, ``in_channels``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedleak.errors import ScenarioError
from fedleak.modalities.base import Spec
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

    @property
    def form(self) -> str:
        """What the files hold and what becomes of it, in a few words; empty where that is not known."""
        return ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of every image, (C, H, W)."""
        channels, height, width = self.load([0])[0].shape
        return channels, height, width

    def describe(self, index: int) -> str:
        """Return what to call the image in a message."""
        return f"image {index}"

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
        Channel statistics of the source, in units of the [0, 1] range: published ones, or measured on public images. One entry a
        channel, or one for all; of colour that is taken as grey, the three of colour.
    takes_columns : bool
        Whether ``data.columns`` can name what the images and labels are called.
    """

    name: ClassVar[str]
    takes_columns: ClassVar[bool] = False
    train: ImageSet
    test: ImageSet | None = None
    class_names: Sequence[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    modality: ClassVar[str] = "image"

    def spec(self, data: Data) -> Spec | None:
        """Return what models take of the examples, where they are no images; images are looked at."""
        return None

    def public(self) -> dict[str, Tensor] | None:
        """Return what is public, as named tensors, for the guesses that saw no update; ``None`` for the mean image."""
        return None

    @abstractmethod
    def __init__(self, data: Data) -> None:
        """Open the source.

        Raises
        ------
        ScenarioError
            If a file is missing, a folder is empty, or a key that the source needs is not given.
        """

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Say whether what lies at ``path`` is of the source's form, by names and first bytes: for messages."""
        return False

    def natural_ids(self, column: str | None) -> NDArray[np.generic]:
        """Return of whom each training image is, (N,): what the partitioner ``natural-id`` splits by.

        Parameters
        ----------
        column : str or None
            As ``data.partition.column`` names it; ``None`` where the scenario does not.

        Raises
        ------
        ScenarioError
            If the source does not know.
        """
        if column == "label":
            return self.train.labels
        raise ScenarioError(
            f"data.partition.column: {'missing' if column is None else repr(column)}; data.source '{self.name}' knows of its "
            "images the 'label' alone; use 'parquet' with a column of ids, or 'leaf' with its users"
        )


sources: Registry[type[Source]] = Registry("data source", "fedleak.data", Source)
