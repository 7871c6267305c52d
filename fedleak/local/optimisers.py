"""Optimisers of ``torch.optim`` by name: the class itself takes the clients' steps.

A specification is a table with a ``name`` and the class's own parameters, such as ``{"name": "adamw", "weight_decay": 0.01}``;
the rate is no part of it. ``None`` is plain SGD, whose step is one subtraction: building any optimiser of PyTorch imports its
compiler, which takes more than a second.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fedleak.errors import ScenarioError, nearest

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

Spec = Mapping[str, Any]

_NOT_ITS_OWN = {"params", "lr"}
_REFUSED = {
    "lbfgs": "evaluates a batch several times in one step, and the defenses see each batch once",
    "sparseadam": "takes sparse gradients, and a client's are dense",
}
_SAID = "torch.optim"


def plain(name: str) -> str:
    """Return a class's name as it is compared: small letters, no hyphens."""
    return name.lower().replace("-", "").replace("_", "")


def optimiser_names() -> list[str]:
    """Return the names of those that clients can train with, as ``torch.optim`` spells them."""
    return sorted(found.__name__ for key, found in _classes().items() if key not in _REFUSED)


def optimiser_class(name: str) -> type[Optimizer]:
    """Return the class of ``torch.optim`` called ``name``, in whatever case, hyphens left out or not.

    Raises
    ------
    ScenarioError
        If there is none, or clients cannot train with it.
    """
    if plain(name) in _REFUSED:
        raise ScenarioError(f"'{name}' {_REFUSED[plain(name)]}; use another of {_SAID}, such as 'sgd' or 'adamw'")
    found = _classes().get(plain(name))
    if found is None:
        raise ScenarioError(f"unknown optimizer '{name}', expected one of {_SAID}; {nearest(name, optimiser_names())}")
    return found


def check_optimiser(spec: Spec) -> None:
    """Refuse an unknown name, and parameters that the class does not have; values are for :func:`make_optimiser`.

    Raises
    ------
    ScenarioError
        Which, and what is near.
    """
    check_parameters(optimiser_class(spec["name"]), spec, _NOT_ITS_OWN, "the rate is 'learning_rate', a key of its own")


def make_optimiser(spec: Spec, parameters: Iterable[Tensor], learning_rate: float) -> Optimizer:
    """Return the optimiser over ``parameters``.

    Raises
    ------
    ScenarioError
        If PyTorch refuses a value, or these parameters.
    """
    made = optimiser_class(spec["name"])
    try:
        return made(list(parameters), lr=learning_rate, **parameters_of(spec))  # type: ignore[call-arg]
    except (ValueError, TypeError, RuntimeError) as error:
        raise ScenarioError(f"torch.optim.{made.__name__} refuses it: {' '.join(str(error).split())}") from error


def check_parameters(made: type, spec: Spec, taken: set[str], hint: str) -> None:
    """Refuse keys beside the name that are no parameters of the class ``made``.

    Parameters
    ----------
    made : type
        A class of PyTorch.
    spec : mapping
        A name and parameters.
    taken : set of str
        Parameters of the class that are not to be given here.
    hint : str
        Why, for who gives one of them.

    Raises
    ------
    ScenarioError
        Which key, and what is near.
    """
    known = [name for name in inspect.signature(made).parameters if name not in taken]
    for key in parameters_of(spec):
        if key in taken:
            raise ScenarioError(f"'{key}' is not given here: {hint}")
        if key not in known:
            raise ScenarioError(f"'{made.__name__}' has no parameter '{key}'; {nearest(key, known)}")


def parameters_of(spec: Spec) -> dict[str, Any]:
    """Return what stands beside the name; lists as tuples, as PyTorch's classes ask for."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in spec.items() if key != "name"}


def _classes() -> dict[str, type[Optimizer]]:
    import torch

    found = {plain(name): value for name, value in vars(torch.optim).items() if inspect.isclass(value)}
    return {key: value for key, value in found.items() if issubclass(value, torch.optim.Optimizer) and key != "optimizer"}
