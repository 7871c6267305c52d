"""Ranges that numbers and paths of a scenario lie in: what no machine could carry out is refused where it is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

MOST_COUNT = 1_000_000
"""Clients, rounds, local steps and the like, at most."""
MOST_SECONDS = 1e7
"""Any time, at most: some 116 days, far below what a clock or a lock overflows at."""
LONGEST_NAME = 200
"""Characters of a name, at most: of a scenario's, a folder is called."""
_WHOLE = 2**31
_LARGEST = 1e30  # whose squares float32 no longer holds, and neither those of one over it
_LONGEST_PATH, _LONGEST_NAME = 4095, 255  # bytes, on Linux
_LONGEST_WORD = 1000


def _usable(path: Path) -> Path:
    encoded = str(path).encode(errors="surrogatepass")
    if b"\0" in encoded:
        raise ValueError("expected a path, got one with a NUL character")
    if len(encoded) > _LONGEST_PATH:
        raise ValueError(f"expected a path of at most {_LONGEST_PATH:,} bytes, got one of {len(encoded):,}")
    longest = max(len(part) for part in encoded.split(b"/"))
    if longest > _LONGEST_NAME:
        raise ValueError(f"expected names of at most {_LONGEST_NAME} bytes in the path, got one of {longest:,}")
    return path


FilePath = Annotated[Path, AfterValidator(_usable)]
"""A path that a file system can be asked about."""
Count = Annotated[int, Field(ge=1, le=MOST_COUNT)]
"""How many of something that a run goes through one by one."""


class Parameters(BaseModel):
    """Parameters of a plugin: frozen, unknown keys refused, and every number one that float32 can be multiplied with.

    A field may narrow that, or take infinity by ``allow_inf_nan=True``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _sane(cls, value: Any) -> Any:
        for leaf in _leaves(value):
            if isinstance(leaf, bool):
                continue
            if isinstance(leaf, int) and abs(leaf) > _WHOLE:
                raise ValueError(f"expected a whole number of at most {_WHOLE:,}, got one beyond it")
            if isinstance(leaf, float) and math.isfinite(leaf) and leaf and not 1 / _LARGEST <= abs(leaf) <= _LARGEST:
                raise ValueError(f"expected 0, or a number from {1 / _LARGEST:g} to {_LARGEST:g} in size, got {leaf:g}")
            if isinstance(leaf, str) and len(leaf) > _LONGEST_WORD:
                raise ValueError(f"expected text of at most {_LONGEST_WORD:,} characters, got {len(leaf):,}")
        return value


def _leaves(value: Any) -> Iterator[Any]:
    """Yield the values inside lists and tables; tables are no deeper than a scenario may be."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value
