"""Sets of labelled passages, held as the tokens that they become."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedleak.data.base import ImageSet
from fedleak.modalities.text.coding import encode_all


class TextSet(ImageSet):
    """Passages as byte tokens.

    Parameters
    ----------
    texts : sequence of str
        N passages.
    labels : ndarray
        (N,) int64 class indices.
    length : int
        Tokens of one, T.
    """

    def __init__(self, texts: Sequence[str], labels: NDArray[np.int64], length: int) -> None:
        self.labels = labels
        self._tokens = encode_all(texts, length)

    def load(self, indices: Sequence[int]) -> Tensor:
        """Return the passages at ``indices`` as int64 (n, T)."""
        return self._tokens[torch.as_tensor(np.asarray(indices, dtype=np.int64))]
