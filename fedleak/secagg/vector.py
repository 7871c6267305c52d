"""The one vector that a client masks and the server unmasks: named arrays on one side and on the other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
_COUNTS = 2**16  # a counter, such as BatchNorm's, may advance by so many steps


def pack(values: Arrays, sent: Arrays, gradients: Collection[str], clipping_range: float) -> NDArray[np.float64]:
    """Return the arrays as one vector (length of all together).

    Parameters
    ----------
    values : mapping of str to ndarray
        What the client would have sent.
    sent : mapping of str to ndarray
        The global model that it was sent, of the same names and shapes.
    gradients : collection of str
        Names of the values that travel as they are; the others travel as their change, integers in units of
        ``clipping_range / 65536``.
    clipping_range : float
        What an entry may not exceed.
    """
    parts = []
    for name in sorted(sent):
        value = np.asarray(values[name], np.float64)
        if name not in gradients:
            value = (value - np.asarray(sent[name], np.float64)) * _unit(sent[name], clipping_range)
        parts.append(value.ravel())
    return np.concatenate(parts)


def unpack(
    vector: NDArray[np.float64], sent: Arrays, gradients: Collection[str], clipping_range: float
) -> dict[str, NDArray[Any]]:
    """Return the named arrays that a mean of :func:`pack`'s vectors stands for, in the order and types of ``sent``."""
    found: dict[str, NDArray[Any]] = {}
    at = 0
    for name in sorted(sent):
        like = sent[name]
        value = vector[at : at + like.size].reshape(like.shape)
        at += like.size
        if name not in gradients:
            value = np.asarray(like, np.float64) + value / _unit(like, clipping_range)
        found[name] = np.asarray(np.rint(value) if like.dtype.kind in "iub" else value, like.dtype)
    return {name: found[name] for name in sent}


def _unit(like: NDArray[Any], clipping_range: float) -> float:
    return clipping_range / _COUNTS if like.dtype.kind in "iub" else 1.0
