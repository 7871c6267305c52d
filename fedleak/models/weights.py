"""Weights to start from: a state dict as safetensors or as torch.save wrote it, or the checkpoint of an earlier run.

What torch.save wrote is read by ``torch.load(weights_only=True)``, which builds tensors and containers, and runs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedleak.errors import ScenarioError
from fedleak.payload import further_names, load
from fedleak.payload import tensors as named_tensors
from fedleak.scenario.tensors import read_safetensors, some

_RUN = "model/"  # what the names of the global model begin with in a run's checkpoint
# Under which key training programs keep the network beside optimiser and epoch.
_NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
_TORCH = (b"PK\x03\x04", b"\x80\x02")  # a file of torch.save's begins so, since 1.6 and before


def load_weights(model: nn.Module, path: Path) -> None:
    """Load ``path`` into ``model``, which it must fit to the last name and shape.

    Parameters
    ----------
    model : Module
        The network that the federation trains.
    path : Path
        Safetensors, or a file of ``torch.save``'s (.pt, .pth, .bin, .ckpt), with the tensors of ``model.state_dict()`` by name;
        in the latter they may stand under ``state_dict``, ``model_state_dict`` or ``model``. What all names begin with, such
        as the ``module.`` of data parallelism, may be more than the model's. Or the ``checkpoint.safetensors`` of a run. Other
        content is left alone.

    Raises
    ------
    ScenarioError
        If the file cannot be read, or names, shapes or types differ from the model's; the message says which.
    """
    tensors = _read(path)
    if any(name.startswith(_RUN) for name in tensors):
        tensors = {name.removeprefix(_RUN): value for name, value in tensors.items() if name.startswith(_RUN)}
    expected = named_tensors(model)
    tensors = _without_prefix(tensors, expected.keys() | (further_names(model) & tensors.keys()))
    tensors = {name: value for name, value in tensors.items() if name not in further_names(model)}
    if missing := expected.keys() - tensors.keys():
        raise _misfit(path, f"lacks {some(missing)}")
    if strange := tensors.keys() - expected.keys():
        raise _misfit(path, f"holds {some(strange)}, which the model has not")
    for name, value in expected.items():
        found = tensors[name]
        if found.shape != value.shape or found.is_floating_point() != value.is_floating_point():
            what = f"'{name}' is {tuple(found.shape)} {found.dtype}"
            raise _misfit(path, f"{what}, expected {tuple(value.shape)} {value.dtype}")
        if found.is_floating_point() and not found.isfinite().all():
            raise _misfit(path, f"'{name}' holds NaN or infinity")
    load(model, tensors)


def _read(path: Path) -> dict[str, Tensor]:
    file = path.expanduser()
    try:
        with file.open("rb") as opened:
            start = opened.read(4)
    except OSError:
        start = b""
    if not start.startswith(_TORCH):
        if file.is_file() and file.suffix in (".pt", ".pth", ".ckpt"):
            raise _unreadable(path, f"begins with {start!r}, and is no file of torch.save's")
        return read_safetensors(path, "model.weights")
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    # Of a file that is damaged, or holds more than tensors, anything may be raised.
    except Exception as error:  # noqa: BLE001
        first = " ".join(str(error).split("\n", 1)[0].split())[:200]
        raise _unreadable(path, f"{type(error).__name__}: {first}") from error
    found = _tensors(content)
    if found is None:
        held = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise _unreadable(path, f"holds {held or 'nothing'}, and no tensors by name")
    return found


def _tensors(content: Any) -> dict[str, Tensor] | None:
    """Return the tensors by name in what a file holds, or in the part of it that is called like a network."""
    if not isinstance(content, Mapping):
        return None
    if content and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        return dict(content)
    return next((found for key in _NESTED if (found := _tensors(content.get(key))) is not None), None)


def _without_prefix(tensors: dict[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors without what all names begin with, if the names are the model's then."""
    names = tensors
    while names and names.keys() != set(expected):
        heads = {name.partition(".")[0] if "." in name else "" for name in names}
        if len(heads) != 1 or "" in heads:
            return tensors
        [head] = heads
        names = {name.removeprefix(f"{head}."): value for name, value in names.items()}
    return names


def _unreadable(path: Path, problem: str) -> ScenarioError:
    return ScenarioError(
        f"model.weights: {path}: cannot be read ({problem}); expected safetensors, or a state dict alone: "
        "torch.save(model.state_dict(), 'weights.pt')"
    )


def _misfit(path: Path, problem: str) -> ScenarioError:
    return ScenarioError(f"model.weights: {path}: {problem}; give weights of the same model, parameters and defenses")
