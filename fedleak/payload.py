"""Which named tensors of a network travel, and which stay: all, those that are trained, or any that are named.

Of the tensors of a state dict three kinds are told apart. *Trained* ones are parameters that clients train and send: what attacks
read. *Carried* ones travel as they are: buffers, and parameters that are frozen. *Kept* ones do not travel: every client and the
server have them from the network itself, and nobody trains them. A parameter with several names (tied weights) is one tensor and
travels under its first name. What a module returns as extra state is no tensor of the network, and does not travel.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor, nn

from fedleak.errors import ScenarioError, nearest

Which = Literal["all", "trainable"] | Sequence[str]
"""All tensors, those that are trained, or those whose names match one of several patterns such as ``"head.*"``."""

_EXTRA = "_extra_state"  # what torch appends to a module's name for what it returns as such


@dataclass(frozen=True)
class Payload:
    """Names of a network's tensors, by what becomes of them; each in the order of the state dict.

    Attributes
    ----------
    trained : tuple of str
        Parameters that are trained, and travel.
    carried : tuple of str
        Buffers and frozen parameters that travel.
    kept : tuple of str
        Parameters and buffers that do not travel, and are not trained.
    """

    trained: tuple[str, ...]
    carried: tuple[str, ...]
    kept: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, which: Which = "all", where: str = "federation.payload") -> Payload:
        """Return what of a network travels.

        Parameters
        ----------
        model : Module
            Its parameters that require no gradient are frozen.
        which : {"all", "trainable"} or sequence of str
            ``"trainable"`` are the parameters that require gradients, and the buffers of the modules that hold them. A parameter
            that does not travel is taken to be frozen.
        where : str
            What the message begins with.

        Raises
        ------
        ScenarioError
            If a pattern matches nothing, or nothing that is trained travels.

        Examples
        --------
        >>> net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
        >>> Payload.of(net, ["1.*"]).trained
        ('1.weight', '1.bias')
        >>> Payload.of(net).carried
        ('0.running_mean', '0.running_var', '0.num_batches_tracked')
        """
        held, trainable = tensors(model), {name for name, value in model.named_parameters() if value.requires_grad}
        travels = _travelling(held, trainable, which, where)
        trained = tuple(name for name in held if name in trainable and name in travels)
        if not trained:
            raise ScenarioError(
                f"{where}: nothing that travels is trained, so that no update tells anything; let a parameter require gradients, "
                f"such as one of {_some(name for name, _ in model.named_parameters())}"
            )
        carried = tuple(name for name in held if name in travels and name not in trainable)
        return cls(trained, carried, tuple(name for name in held if name not in travels))

    @property
    def whole(self) -> bool:
        """Whether everything travels."""
        return not self.kept

    def select(self, model: nn.Module) -> dict[str, Tensor]:
        """Return a network's tensors that travel, in the order of its state dict."""
        kept = set(self.kept)
        return {name: value for name, value in tensors(model).items() if name not in kept}

    def freeze(self, model: nn.Module) -> None:
        """Let the parameters that do not travel require no gradient."""
        kept = set(self.kept)
        for name, value in model.named_parameters():
            if name in kept:
                value.requires_grad_(False)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a network's parameters and persistent buffers by name, in the order of its state dict; tied ones once."""
    further = further_names(model)
    state: Mapping[str, object] = model.state_dict()
    return {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor) and name not in further and name.rpartition(".")[2] != _EXTRA
    }


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that require gradients, by name."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def withheld(model: nn.Module, payload: Payload) -> nn.Module:
    """Return a network that knows nothing of what does not travel: a copy that holds zeros there."""
    if payload.whole:
        return model
    other, kept = copy.deepcopy(model), set(payload.kept)
    for name, value in tensors(other).items():
        if name in kept:
            value.zero_()
    return other


def load(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Load a payload into a network; what it does not hold stays as it is.

    Raises
    ------
    RuntimeError
        If it holds a name that the network has not, or a tensor of another shape.
    """
    outcome = model.load_state_dict(dict(values), strict=False)
    if outcome.unexpected_keys:
        raise RuntimeError(f"the network has no {_some(outcome.unexpected_keys)}")


def further_names(model: nn.Module) -> set[str]:
    """Return the names but the first of parameters that have several."""
    first = {id(value): name for name, value in model.named_parameters()}
    everything = model.named_parameters(remove_duplicate=False)
    return {name for name, value in everything if first[id(value)] != name}


def _travelling(held: Mapping[str, Tensor], trainable: set[str], which: Which, where: str) -> set[str]:
    if which == "all":
        return set(held)
    if which == "trainable":
        training = {name.rpartition(".")[0] for name in trainable}
        return {name for name in held if name in trainable or (name.rpartition(".")[0] in training)}
    travels: set[str] = set()
    for pattern in which:
        matching = {name for name in held if name == pattern or fnmatchcase(name, pattern)}
        if not matching:
            modules = [f"{name}.*" for name in Counter(name.rpartition(".")[0] for name in held) if name]
            raise ScenarioError(f"{where}: '{pattern}' matches no tensor of the network; {nearest(pattern, [*held, *modules])}")
        travels |= matching
    return travels


def _some(names: Iterable[str]) -> str:
    listed = [f"'{name}'" for name in names]
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")
