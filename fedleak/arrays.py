"""Between Flower's arrays and those of NumPy and PyTorch: the same bytes and values as by Flower itself, in less of the time.

Flower keeps an array as the bytes of a .npy file, and for each has NumPy write the header, or parse it as a Python literal. For
small tensors that takes ten times as long as their values do; a federation sends the same few forms again and again.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib import format as npy
from torch import Tensor

Values = np.ndarray[Any, Any]
_Record = TypeVar("_Record", ArrayRecord, ConfigRecord, MetricRecord)
_MAGIC = npy.magic(1, 0)
_START = len(_MAGIC) + 2  # the header's length follows, in two bytes
_STYPE = Array(np.empty(0)).stype


def copy_of(array: Array) -> Array:
    """Return an array with the same fields, of which the bytes are shared: nobody can write to those.

    Raises
    ------
    TypeError
        If a field is of another type than Flower's.
    """
    fields = (array.dtype, array.shape, array.stype, array.data)
    if tuple(map(type, fields)) != (str, tuple, str, bytes) or not all(type(side) is int for side in array.shape):
        return Array(*fields)
    return _array(*fields)


def values_of(array: Array) -> Values:
    """Return an array's values, where possible without a copy and so read-only.

    Raises
    ------
    Exception
        Whatever ``array.numpy()`` raises, if its bytes are not those of a .npy file.
    """
    data, end = array.data, _START
    if array.stype == _STYPE and data[: len(_MAGIC)] == _MAGIC:
        end += int.from_bytes(data[len(_MAGIC) : _START], "little")
        form = _form(data[:end])
        if form is not None and form[1] and len(data) == end + form[1] * form[0].itemsize:
            return np.frombuffer(data, form[0], form[1], end).reshape(form[2])
    return array.numpy()


def array_of(values: Values) -> Array:
    """Return ``Array(values)``: a copy, with the same bytes."""
    if values.dtype.kind not in "fiub" or not values.flags.c_contiguous:
        return Array(values)
    name, header = _header(values.dtype, values.shape)
    return _array(name, values.shape, _STYPE, header + values.tobytes())


def tensors_of(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """Return a record's tensors by name, in memory of their own."""
    return {name: tensor_of(array) for name, array in arrays.items()}


def tensor_of(array: Array) -> Tensor:
    """Return an array's values as a tensor, in memory that PyTorch aligned: kernels may round by where their operands lie."""
    values = values_of(array)
    if values.flags.writeable or not values.dtype.isnative:
        return torch.from_numpy(values).clone(memory_format=torch.contiguous_format)
    tensor = torch.empty(values.shape, dtype=_torch_type(values.dtype))
    tensor.numpy()[...] = values
    return tensor


def shared_tensors_of(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """Return a record's tensors by name, not to be written to: those of the call before, if it was for the same bytes.

    All clients of a round are sent the same.
    """
    global _latest
    own, latest = {name: (array.stype, array.data) for name, array in arrays.items()}, _latest
    if (
        latest is None
        or list(latest[0]) != list(own)
        or any(latest[0][name][0] != stype or latest[0][name][1] is not data for name, (stype, data) in own.items())
    ):
        _latest = latest = own, tensors_of(arrays)
    return dict(latest[1])


_latest: tuple[dict[str, tuple[str, bytes]], dict[str, Tensor]] | None = None


def record_of(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return ``ArrayRecord(tensors)``: a copy, with the same bytes."""
    return record_with({name: array_of(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()})


def record_with(arrays: dict[str, Array]) -> ArrayRecord:
    """Return a record that holds these arrays, and not copies of them as ``ArrayRecord(arrays)`` does."""
    record = ArrayRecord()
    record.__dict__["_data"].update(arrays)  # one by one, Flower looks at the type of each for longer than all else takes
    return record


def records_of(content: RecordDict, kind: type[_Record]) -> dict[str, _Record]:
    """Return the records of one kind by name, to be read: ``content.array_records`` can be written to, and takes far longer."""
    return {name: record for name, record in content.items() if isinstance(record, kind)}


def _array(dtype: str, shape: tuple[int, ...], stype: str, data: bytes) -> Array:
    array = Array.__new__(Array)  # Flower's own way looks at each field again and again
    array.__dict__.update(dtype=dtype, shape=shape, stype=stype, data=data)
    return array


@lru_cache(maxsize=256)
def _form(header: bytes) -> tuple[np.dtype[Any], int, tuple[int, ...]] | None:
    """Return dtype, number of values and shape of a .npy file; ``None`` for what NumPy's own reader is to see to."""
    file = BytesIO(header)
    try:
        npy.read_magic(file)
        shape, transposed, dtype = npy.read_array_header_1_0(file)
    except (ValueError, TypeError, OSError, EOFError, SyntaxError, MemoryError):
        return None
    if transposed or dtype.hasobject or min(shape, default=0) < 0:
        return None
    count = 1
    for side in shape:
        count *= side
    return dtype, count, shape


@lru_cache(maxsize=256)
def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> tuple[str, bytes]:
    """Return how a dtype is called, and the header of a .npy file."""
    file = BytesIO()
    npy.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return str(dtype), file.getvalue()


@lru_cache(maxsize=32)
def _torch_type(dtype: np.dtype[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
