"""Which of a network's tensors an app sends, under whatever names: by name, by place in a list, as a head's state dict, by peft.

Apps send ``model.state_dict()``, that of a compiled or wrapped network, that of one of its modules (a head), what peft calls an
adapter's state dict, or a list of NumPy arrays in an order of their own, which Flower names "0", "1" and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from flwr.app import ArrayRecord
from torch import nn

from fedleak.errors import ScenarioError
from fedleak.models.outputs import own_name
from fedleak.payload import Payload, Which, further_names, tensors

Shape = tuple[int, ...]
_ADAPTER = ("default", "modules_to_save")  # what peft puts into names, and leaves out of what it sends
_WRAPPED = "module"  # where torch's parallel wrappers keep a network


def names_of(model: nn.Module, sent: ArrayRecord, which: Which | None = None) -> dict[str, str]:
    """Return what each array that an app sends is called in the network; what is no tensor, such as extra state, is left out.

    Parameters
    ----------
    model : Module
        The whole network, at least.
    sent : ArrayRecord
        The model that the app starts from.
    which : {"all", "trainable"} or sequence of str, optional
        What is told of it: only these are looked among.

    Raises
    ------
    ScenarioError
        If names and shapes fit no tensors of the network, or more than one choice of them.
    """
    held = {name: tuple(value.shape) for name, value in tensors(model).items()}
    further = further_names(model)
    if which is not None:
        payload = Payload.of(model, which, "fedleak.curious: payload")
        held = {name: shape for name, shape in held.items() if name not in payload.kept}
    shapes = {name: tuple(array.shape) for name, array in sent.items()}
    if list(shapes) == [str(number) for number in range(len(shapes))]:
        return _by_place(model, shapes, held, which)
    known = shapes.keys() & further | {name for name in shapes if own_name(name).endswith("_extra_state")}
    wanted = {name: shape for name, shape in shapes.items() if name not in known}
    found = [mapping for mapping in _by_name(wanted, held) if all(held[own] == wanted[name] for name, own in mapping.items())]
    distinct = [mapping for number, mapping in enumerate(found) if mapping not in found[:number]]
    if len(distinct) == 1:
        return distinct[0]
    raise ScenarioError(_misfit(wanted, held, len(distinct)))


def _by_name(wanted: Mapping[str, Shape], held: Mapping[str, Shape]) -> list[dict[str, str]]:
    """Return the ways in which all names can be read as those of the network."""
    for plain in (lambda name: name, own_name, _unwrapped):
        read = {name: plain(name) for name in wanted}
        if set(read.values()) <= held.keys():
            return [read]
    adapters = _by(held, lambda name: ".".join(part for part in name.split(".") if part not in _ADAPTER))
    if all(name in adapters for name in wanted):
        return [{name: adapters[name] for name in wanted}]
    first = next(iter(wanted), "")
    prefixes = [name.removesuffix(first) for name in held if name.endswith(f".{first}")]
    return [{name: prefix + name for name in wanted} for prefix in prefixes if all(prefix + name in held for name in wanted)]


def _by_place(model: nn.Module, shapes: Mapping[str, Shape], held: Mapping[str, Shape], which: Which | None) -> dict[str, str]:
    """Read a list of arrays as the tensors told, or as all, the parameters, or those that are trained, in the network's order."""
    orders: list[list[str]] = [list(held)]
    if which is None:
        everything = [name for name in model.state_dict() if own_name(name).rpartition(".")[2] != "_extra_state"]
        parameters = dict(model.named_parameters())
        orders += [everything, list(parameters), [name for name, value in parameters.items() if value.requires_grad]]
    state = {name: tuple(value.shape) for name, value in model.state_dict().items() if hasattr(value, "shape")}
    fitting = [order for order in orders if [state.get(name) for name in order] == list(shapes.values())]
    if not fitting:
        raise ScenarioError(_misfit(shapes, held, 0))
    return {place: name for place, name in zip(shapes, fitting[0], strict=True) if name in held}


def _by(names: Iterable[str], key: Callable[[str], str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(key(name), name)
    return found


def _unwrapped(name: str) -> str:
    return own_name(name).removeprefix(f"{_WRAPPED}.")


def _misfit(wanted: Mapping[str, Shape], held: Mapping[str, Shape], choices: int) -> str:
    def some(named: Mapping[str, Shape]) -> str:
        listed = [f"'{name}' {shape}" for name, shape in named.items()]
        return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")

    other = next((name for name, shape in wanted.items() if name in held and held[name] != shape), None)
    if other is not None:
        return (
            f"fedleak.curious: '{other}' is sent as {wanted[other]}, but the network has {held[other]}; give curious() "
            "the network that the clients run"
        )
    if choices:
        return (
            f"fedleak.curious: what the app sends, {some(wanted)}, fits {choices} parts of the network; say which by "
            "payload=['head.*']"
        )
    return (
        f"fedleak.curious: what the app sends, {some(wanted)}, is no part of the network, which holds {some(held)}; "
        "give curious() the whole network that the clients run, and payload=['head.*'] if the app sends a part of it as a list"
    )
