"""Logits, whatever a network returns: a tensor, a dict, a tuple, an object such as transformers' ``ModelOutput``; one or many.

A network with one output z for two classes is read as one with the logits (0, z): their cross-entropy is the binary
cross-entropy of z, with the same gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedleak.errors import ScenarioError
from fedleak.modalities.image import InputSpec
from fedleak.models.inspect import placed
from fedleak.models.trial import tried
from fedleak.seeding import Seed

_USUAL = "logits"
_COMPILED = "_orig_mod"  # where torch.compile keeps the network that it was given
_PROBE = 2


def ready(model: nn.Module, input: InputSpec, output: str | None = None, where: str = "model") -> nn.Module:
    """Return a network of one's own as one that gives logits (B, num_classes), under the names of its own parameters.

    A network that does so already is returned as it is; any other is left as it was, and a copy of it is returned.

    Parameters
    ----------
    model : Module
        Takes model inputs (B, C, H, W); compiled or not.
    input : InputSpec
        What it takes.
    output : str, optional
        Which of its outputs are the logits: a key, an attribute, or a position in a tuple such as ``"0"``. By default those
        called ``logits``, or the only tensor of their shape.
    where : str
        What the message begins with.

    Raises
    ------
    ScenarioError
        If it cannot take the input, or the logits cannot be told; the message says what it returned.

    Examples
    --------
    >>> class Net(nn.Linear):
    ...     def forward(self, x):
    ...         return {"logits": super().forward(x.flatten(1)), "loss": None}
    >>> ready(Net(12, 5), InputSpec((3, 2, 2), 5))(torch.zeros(1, 3, 2, 2)).shape
    torch.Size([1, 5])
    """
    plain = uncompiled(model)
    returned = _probe(plain, input, where)
    if isinstance(returned, Tensor) and tuple(returned.shape) == (_PROBE, input.num_classes) and output in (None, ""):
        return plain
    chosen = output or _found(returned, input.num_classes, where)
    logits = _picked(returned, chosen, where)
    if not _fits(logits, input.num_classes):
        came = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        named = f" as '{chosen}'" if chosen else ""
        one = " or one value an image" if input.num_classes == 2 else ""
        raise ScenarioError(
            f"{where}: gives {came}{named} for a batch of {_PROBE}, expected logits of shape "
            f"{(_PROBE, input.num_classes)}{one}; attacks read classifiers of images"
        )
    if plain is model:
        plain = copy.deepcopy(model)
    plain.register_forward_hook(partial(_logits, chosen, input.num_classes))
    return plain


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the network itself where ``torch.compile`` wrapped it or a part of it: its names are then those without it."""
    compiled = any(name.rpartition(".")[2] == _COMPILED for name, _ in model.named_modules())
    if not compiled and all(getattr(module, "_compiled_call_impl", None) is None for module in model.modules()):
        return model
    return _opened(copy.deepcopy(model))


def own_name(name: str) -> str:
    """Return what a tensor of a compiled network is called in the network itself."""
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def _opened(module: nn.Module) -> nn.Module:
    while isinstance(inner := module._modules.get(_COMPILED), nn.Module):
        module = inner
    module._compiled_call_impl = None
    for name, child in module._modules.items():
        if child is not None:
            module._modules[name] = _opened(child)
    return module


def _probe(model: nn.Module, input: InputSpec, where: str) -> Any:
    """Return what the network makes of a batch of two; its mode, buffers and the global generators are as before."""
    place = next(model.parameters(), torch.zeros(()))
    batch = placed(input.probe(_PROBE, Seed(0).generator()), place)
    try:
        with torch.no_grad():
            return tried(model, batch)
    # The user's module may raise anything.
    except Exception as error:  # noqa: BLE001
        raise ScenarioError(f"{where}: cannot take a batch of shape {tuple(batch.shape)}: {error}") from error


def _parts(returned: Any) -> dict[str, Any]:
    """Return what a network returned, by name; a tensor by itself has none."""
    if isinstance(returned, Mapping):
        return {str(name): value for name, value in returned.items()}
    if is_dataclass(returned) and not isinstance(returned, type):
        return {one.name: getattr(returned, one.name) for one in fields(returned)}
    if isinstance(returned, tuple) and hasattr(returned, "_fields"):
        return dict(zip(returned._fields, returned, strict=True))
    if isinstance(returned, tuple | list):
        return {str(place): value for place, value in enumerate(returned)}
    return dict(vars(returned)) if hasattr(returned, "__dict__") and not isinstance(returned, Tensor) else {}


def _found(returned: Any, classes: int, where: str) -> str:
    """Return the name of the logits among what a network returned; empty where it returned nothing else."""
    if isinstance(returned, Tensor):
        return ""
    parts = _parts(returned)
    if isinstance(parts.get(_USUAL), Tensor):
        return _USUAL
    fitting = [name for name, value in parts.items() if _fits(value, classes)]
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(f"'{name}' {_said(value)}" for name, value in parts.items() if value is not None) or "nothing"
    what = "more than one of these has" if fitting else "none of these has"
    raise ScenarioError(
        f"{where}: gives {type(returned).__name__} of {listed} for a batch of {_PROBE}; {what} the shape of logits, "
        f"{(_PROBE, classes)}; name them by model.output, or curious(output=...)"
    )


def _said(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _picked(returned: Any, name: str, where: str) -> Any:
    if not name:
        return returned
    parts = _parts(returned)
    if name in parts:
        return parts[name]
    # Of a named tuple the position is as good a name.
    if isinstance(returned, tuple | list) and name.lstrip("-").isdigit() and -len(returned) <= int(name) < len(returned):
        return returned[int(name)]
    if not isinstance(returned, Tensor) and hasattr(returned, name):
        return getattr(returned, name)
    known = ", ".join(f"'{part}'" for part in parts) or "one tensor and no others"
    raise ScenarioError(f"{where}: output '{name}' is not among what it returns; expected one of: {known}")


def _fits(value: Any, classes: int) -> bool:
    if not isinstance(value, Tensor):
        return False
    return tuple(value.shape) == (_PROBE, classes) or (classes == 2 and tuple(value.shape) in ((_PROBE,), (_PROBE, 1)))


def _logits(name: str, classes: int, model: nn.Module, args: tuple[Any, ...], returned: Any) -> Tensor:
    """Stand behind a network's forward, as its hook."""
    logits: Tensor = _picked(returned, name, "model")
    if classes == 2 and (logits.dim() == 1 or logits.shape[1] == 1):
        one = logits.reshape(-1, 1)
        return torch.cat([torch.zeros_like(one), one], dim=1)
    return logits
