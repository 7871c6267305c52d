"""The network that a client trains, built once for each process and lent to one message after another.

Building one draws all its weights, only for the received ones to take their place. A network that was trained is as a new one if
all that it holds beside weights can be put back: layers, hooks and settings are. A network that holds anything else, such as a
tensor or an object as a plain attribute, is built anew for each message.
"""

from __future__ import annotations

import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fedleak.defenses.base import defenses
from fedleak.defenses.chain import defended_model
from fedleak.modalities.image import InputSpec
from fedleak.models import models
from fedleak.observation import Tensors
from fedleak.payload import Payload, load
from fedleak.scenario.schema import Scenario
from fedleak.seeding import Seed

_PLAIN = (type(None), bool, int, float, complex, str, bytes, types.BuiltinFunctionType, torch.dtype, torch.device)
_CONTAINERS = (list, set, dict, OrderedDict)
_WAYS = ("state_dict", "load_state_dict", "_save_to_state_dict", "_load_from_state_dict", "get_extra_state")
_MISSING = object()


@contextmanager
def network(
    scenario: Scenario, input: InputSpec, received: Tensors, device: torch.device
) -> Iterator[tuple[nn.Module, Lent | None]]:
    """Lend the scenario's network, as its defenses change it, with the received weights and buffers, in the mode it is built in.

    Beside it comes what knows its parts by heart, ``None`` if it is built for this message only.

    Parameters
    ----------
    scenario : Scenario
        Says which.
    input : InputSpec
        What it takes.
    received : dict of str to Tensor
        The global model, as far as it travels; copied.
    device : device
        Where the network is to lie.

    Raises
    ------
    RuntimeError
        If the names or shapes received are not the network's.
    """
    # What a name stands for may change while a process lives.
    plugins = models.get(scenario.model.name), tuple(defenses.get(spec.name) for spec in scenario.defenses)
    key = scenario.model, scenario.defenses, scenario.seed, scenario.federation.payload, input, plugins
    found, lent = _spare.pop() if _spare else (None, None)
    if lent is None or found != key or not lent.fits(received):
        # By a seed of its own: whatever building draws, what training draws is the same with a new network and with a lent one.
        with Seed(scenario.seed).derive("network").isolated():
            model = defended_model(scenario, input)
        payload = Payload.of(model, scenario.federation.payload)
        lent = Lent.of(model, payload)
        if lent is None or not lent.fits(received):
            if different := received.keys() ^ payload.select(model).keys():
                raise RuntimeError(
                    f"the global model and the network of the scenario differ in {', '.join(sorted(different)[:3])}"
                )
            # A user's network may keep what it is given, and train that.
            load(model, {name: value.clone() for name, value in received.items()})
            yield model.to(device), None
            return
    yield lent.loaded(received, device), lent
    lent.clear()
    _spare[:] = [(key, lent)]


@dataclass(frozen=True)
class _Place:
    """Where a tensor goes; ``value`` is what one holds that does not travel."""

    name: str
    trained: bool
    requires_grad: bool
    value: Tensor | None

    def filled(self, received: Tensors, device: torch.device) -> Tensor:
        tensor = (received[self.name] if self.value is None else self.value).to(device, copy=True)
        return nn.Parameter(tensor, self.requires_grad) if self.trained else tensor


@dataclass(frozen=True)
class _Part:
    """A module of the network, and what it held when it was built."""

    module: nn.Module
    prefix: str
    plain: dict[str, Any]
    containers: dict[str, Any]
    tensors: dict[str, dict[str, _Place | None]]


class Lent:
    """A network that can be put back to what it was when it was built; made by :meth:`of`."""

    def __init__(self, model: nn.Module, parts: list[_Part], travelling: Tensors) -> None:
        self._model = model
        self._parts = parts
        self._plain_mode = all(type(part.module).train is nn.Module.train for part in parts)
        self._forms = {name: (value.shape, value.dtype) for name, value in travelling.items()}

    @classmethod
    def of(cls, model: nn.Module, payload: Payload) -> Lent | None:
        """Return the network to be lent, or ``None`` if it holds what cannot be put back."""
        kept, travelling = frozenset(payload.kept), payload.select(model)
        parts = [_part(module, f"{path}." if path else "", kept) for path, module in model.named_modules()]
        found = [part for part in parts if part is not None]
        state = model.state_dict(keep_vars=True)
        places = [place for part in found for kind in part.tensors.values() for place in kind.values() if place is not None]
        travel = sorted(place.name for place in places if place.value is None)
        tied = len(set(map(id, state.values()))) < len(state)
        return None if len(found) < len(parts) or travel != sorted(travelling) or tied else cls(model, found, travelling)

    def fits(self, received: Tensors) -> bool:
        """Say whether tensors have the names, shapes and types of the network's."""
        return {name: (value.shape, value.dtype) for name, value in received.items()} == self._forms

    def loaded(self, received: Tensors, device: torch.device) -> nn.Module:
        """Return the network with these weights and buffers, each in a new tensor."""
        for part in self._parts:
            for kind, places in part.tensors.items():
                part.module.__dict__[kind] = {
                    name: None if place is None else place.filled(received, device) for name, place in places.items()
                }
        return self._model

    def set_mode(self, training: bool) -> None:
        """Do as ``model.train(training)``."""
        if not self._plain_mode:
            self._model.train(training)
            return
        for part in self._parts:
            part.module.__dict__["training"] = training

    def parameters(self) -> Tensors:
        """Return the parameters that are trained, by name, if nobody changed which there are."""
        return {
            part.prefix + name: value
            for part in self._parts
            for name, value in part.module._parameters.items()
            if value is not None and value.requires_grad
        }

    def clear(self) -> None:
        """Put everything back to what it was, and let go of the tensors."""
        for part in self._parts:
            state = part.module.__dict__
            for name, value in part.plain.items():
                if state.get(name, _MISSING) is not value:
                    state[name] = value
            for name, value in part.containers.items():
                if value or state.get(name, _MISSING):
                    state[name] = _copied(value)
            for kind, places in part.tensors.items():
                state[kind] = dict.fromkeys(places)
            if len(state) > len(part.plain) + len(part.containers) + len(part.tensors):
                for name in state.keys() - part.plain.keys() - part.containers.keys() - part.tensors.keys():
                    del state[name]


_spare: list[tuple[Any, Lent]] = []
"""The network of the latest message, if it can be lent again, after what it was built from. Who borrows it takes it out."""


def _part(module: nn.Module, prefix: str, kept: frozenset[str]) -> _Part | None:
    """Return what a module holds, or ``None`` if some of it cannot be put back."""
    kind = type(module)
    ours = all(getattr(kind, way) in (getattr(nn.Module, way), getattr(_NormBase, way)) for way in _WAYS)
    slots = any(getattr(base, "__slots__", ()) for base in kind.__mro__)
    tensors: dict[str, dict[str, _Place | None]] = {
        "_parameters": {
            name: _place(prefix + name, value, travels=prefix + name not in kept) for name, value in module._parameters.items()
        },
        "_buffers": {
            name: _place(
                prefix + name, value, travels=name not in module._non_persistent_buffers_set and prefix + name not in kept
            )
            for name, value in module._buffers.items()
        },
    }
    values = [*module._parameters.values(), *module._buffers.values()]
    rest = {name: value for name, value in module.__dict__.items() if name not in tensors and name != "_modules"}
    if slots or not ours or not all(map(_usual, values)) or not all(map(_can_be_put_back, rest.values())):
        return None
    containers = {name: _copied(value) for name, value in rest.items() if isinstance(value, _CONTAINERS)}
    plain = {name: value for name, value in rest.items() if name not in containers}
    return _Part(module, prefix, plain, containers | {"_modules": dict(module._modules)}, tensors)


def _place(name: str, value: Tensor | None, *, travels: bool) -> _Place | None:
    if value is None:
        return None
    kept = None if travels else value.detach().clone()
    return _Place(name, isinstance(value, nn.Parameter), value.requires_grad, kept)


def _usual(value: Tensor | None) -> bool:
    """Say whether a new tensor can stand for this one."""
    return value is None or (
        type(value) in (Tensor, nn.Parameter)
        and value.is_contiguous()
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not value._backward_hooks
        and not vars(value)
    )


def _can_be_put_back(value: Any) -> bool:
    """Say whether a value can never change, or is a container of such, of which a copy is kept."""
    if type(value) in _CONTAINERS:
        return all(map(_can_be_put_back, [*value.keys(), *value.values()] if isinstance(value, dict) else value))
    return _never_changes(value)


def _never_changes(value: Any) -> bool:
    if isinstance(value, types.FunctionType):
        return not value.__closure__ and not vars(value) and _never_changes(value.__defaults__)
    if type(value) is partial:
        return not vars(value) and _never_changes((value.func, value.args, *value.keywords.values()))
    if type(value) in (tuple, frozenset, torch.Size):
        return all(map(_never_changes, value))
    return isinstance(value, type | Enum) or type(value) in _PLAIN


def _copied(value: Any) -> Any:
    """Return a copy of a container, and of the containers in it."""
    if isinstance(value, dict):
        return type(value)((key, _copied(part)) for key, part in value.items())
    return type(value)(map(_copied, value)) if isinstance(value, list | set) else value
