"""Files of tensors that a scenario names: read whole, or refused with one line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fedleak.errors import ScenarioError

_LISTED = 3
_HEADER = 8  # bytes that say how long a safetensors header is


def read_safetensors(path: Path, where: str) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file.

    Raises
    ------
    ScenarioError
        If it is missing or no safetensors; the message begins with ``where``.
    """
    if not path.expanduser().is_file():
        raise ScenarioError(f"{where}: {path}: no such file; expected a safetensors file")
    try:
        with safe_open(path.expanduser(), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except (OSError, SafetensorError) as error:
        raise ScenarioError(f"{where}: {path}: cannot be read ({error}); expected a safetensors file") from error


def some(names: Iterable[str]) -> str:
    """Return a few of ``names``, and how many more there are."""
    ordered = [f"'{name}'" for name in sorted(names)]
    return ", ".join(ordered[:_LISTED]) + (f" and {len(ordered) - _LISTED} more" if len(ordered) > _LISTED else "")


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header of a safetensors file's content, and the bytes of its tensors."""
    end = _HEADER + int.from_bytes(content[:_HEADER], "little")
    return json.loads(content[_HEADER:end]), content[end:]


def metadata_of(content: bytes) -> dict[str, str]:
    """Return what a safetensors file's content says beside its tensors."""
    found: dict[str, str] = header_of(content)[0].get("__metadata__", {})
    return found
