"""Reads a pickle of plain values and NumPy arrays without calling anything that it names.

What a pickle names is looked up in a table of stand-ins that keep an array's shape, type and bytes; a name outside the
table ends the reading. The array is made afterwards, out of bytes whose number was checked.
"""

from __future__ import annotations

import io
import pickle
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedleak.errors import ScenarioError

LARGEST: Final = 2**30
"""Bytes of the largest file that is read: CIFAR-100's is a sixth of it."""


class _Type:
    """Stands for a NumPy type."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        self.order = order.decode("ascii") if isinstance(order, bytes) else order

    def made(self) -> np.dtype[Any]:
        if not isinstance(self.code, str) or self.code[:1] not in "biuf" or self.order not in ("<", ">", "|", "="):
            raise ValueError(f"an array of type {self.code!r}, expected numbers")
        return np.dtype(self.order + self.code)


class _Array:
    """Stands for a NumPy array."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def made(self) -> Any:
        _, shape, kind, fortran, content = self.state
        if not isinstance(kind, _Type) or not isinstance(content, bytes):
            raise ValueError("an array that is no block of numbers")
        dtype = kind.made()
        if len(content) != prod(shape) * dtype.itemsize:
            raise ValueError(f"an array of shape {shape} with {len(content)} bytes")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.state = (1, shape, kind, order == "F", bytes(content))
    return array


def _bytes(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("text in another encoding than latin1")
    return text.encode("latin1")


_STAND_INS: Final[dict[tuple[str, str], Any]] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _bytes,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in, or refuse."""
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not run")
        return _STAND_INS[module, name]


def read_inert(path: Path) -> dict[str, Any]:
    """Return the dictionary in a pickle: its keys as text, its arrays as NumPy's, all else as it is.

    Raises
    ------
    ScenarioError
        If it is damaged, larger than :data:`LARGEST`, or names anything but arrays.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST:,} bytes")
        found = _Reader(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, no dictionary")
        return {_text(key): value.made() if isinstance(value, _Array) else value for key, value in found.items()}
    # A damaged pickle ends in any of them.
    except (
        OSError,
        pickle.UnpicklingError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        EOFError,
        MemoryError,
    ) as error:
        raise ScenarioError(
            f"{path}: cannot be read ({' '.join(str(error).split())}); expected a pickle of numbers, text and NumPy arrays: no "
            "other is run"
        ) from error


def _text(key: Any) -> str:
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
