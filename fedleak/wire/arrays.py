"""Arrays as they travel: the model that clients were sent, and the values of what they sent back, decoded once."""

from __future__ import annotations

from functools import cached_property
from tokenize import TokenError
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord

from fedleak.arrays import values_of
from fedleak.errors import ReplyError
from fedleak.runs.folder import Arrays

_NPY = b"\x93NUMPY"


class SentModel:
    """The global model as it was sent, and the form that every array of a reply to it must have.

    Parameters
    ----------
    record : ArrayRecord
        By state-dict name.
    """

    def __init__(self, record: ArrayRecord) -> None:
        self.record = record
        self.forms = {name: (tuple(array.shape), np.dtype(array.dtype)) for name, array in record.items()}

    @cached_property
    def values(self) -> Arrays:
        """The values by name; not to be written into."""
        return {name: _sealed(values_of(array)) for name, array in self.record.items()}

    def decode(self, name: str, array: Array) -> np.ndarray[Any, Any]:
        """Return the values of what came back as ``name``; not to be written into.

        Raises
        ------
        ReplyError
            If its bytes are not NumPy's format, or hold another shape or type than was sent.
        """
        shape, dtype = self.forms[name]
        if tuple(array.shape) != shape:
            raise ReplyError(f"'{name}' has shape {tuple(array.shape)}, expected {shape}")
        values = decoded(name, array)
        if values.shape != shape or values.dtype != dtype:
            raise ReplyError(f"'{name}' holds {values.dtype} {values.shape}, expected {dtype} {shape}")
        return _sealed(values)


class DecodedArray(Array):
    """An array whose values are known: ``numpy`` copies them, and does not decode its bytes again.

    Parameters
    ----------
    array : Array
        As it came.
    values : ndarray
        What its bytes hold.
    """

    def __init__(self, array: Array, values: np.ndarray[Any, Any]) -> None:
        # Not by Flower's own constructor, which looks into each field to find out which of its forms it was given.
        self.__dict__.update(dtype=array.dtype, shape=tuple(array.shape), stype=array.stype, data=array.data, _values=values)

    def numpy(self) -> np.ndarray[Any, Any]:
        """Return the values, in memory of their own: some strategies clip them in place."""
        values: np.ndarray[Any, Any] = self.__dict__["_values"]
        return values.copy()


def decoded(name: str, array: Array | None) -> np.ndarray[Any, Any]:
    """Return the values of an array that a client sent; not to be written into, as they may lie in its bytes.

    Raises
    ------
    ReplyError
        If there is none, or its bytes are not NumPy's format.
    """
    if array is None or not array.data.startswith(_NPY):
        raise ReplyError(f"'{name}' is missing, or no NumPy array")
    try:
        values = values_of(array)
    # What NumPy's reader makes of bytes that only look like an array.
    except (ValueError, TypeError, OSError, EOFError, MemoryError, SyntaxError, TokenError) as error:
        raise ReplyError(f"'{name}' cannot be decoded: {error}") from error
    return values


def _sealed(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    values.flags.writeable = False
    return values
