"""The scenario's model: one of the zoo by name, or the user's own as ``package.module:function``.

``model = { name = "mine:make", width = 8 }`` calls the function ``make`` of mine.py, in the folder that you run from or on
PYTHONPATH, with those of these three that it takes by name, and with the parameters beside the name, here ``width``::

    num_classes   how many classes the data has
    input_shape   (channels, height, width) of one image, such as (1, 28, 28)
    in_channels   the first of them

It returns a torch.nn.Module from images (batch, channels, height, width), normalised where ``data.normalize`` says so, to
logits (batch, num_classes). Its layers draw from torch's own generator, which the scenario's seed has set before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from fedleak.errors import ParameterError, ScenarioError, nearest, told
from fedleak.modalities.image import InputSpec
from fedleak.models.base import ModelBuilder, models
from fedleak.models.outputs import ready
from fedleak.scenario.schema import Model
from fedleak.seeding import Seed


def build_model(spec: Model, input: InputSpec, seed: int) -> nn.Module:
    """Build a freshly initialised network, on the CPU and in train mode.

    The same arguments give the same weights, whatever drew from the global generators before; these are left as
    they were.

    Parameters
    ----------
    spec : Model
        A name in the zoo with its parameters, or ``package.module:function``. The function is called with those of
        ``num_classes`` (int), ``input_shape`` (C, H, W) and ``in_channels`` (int) that it accepts, and with the
        parameters of the scenario. What it returns may be compiled, and give its logits among other things; see
        :func:`fedleak.models.outputs.ready`.
    input : InputSpec
        What the model takes.
    seed : int
        The scenario's seed.

    Raises
    ------
    ScenarioError
        If the name or a parameter is unknown or out of range, or the user's function does not return a module from
        (B, C, H, W) to logits (B, num_classes), or one value an image where there are two classes.
    """
    try:
        found: Any = models.get(spec.name)
    except ScenarioError as error:
        raise ScenarioError(f"model.name: {error}") from error
    with Seed(seed).derive("model").isolated():
        if isinstance(found, type) and issubclass(found, ModelBuilder):
            if found.modality != input.modality:
                fitting = sorted(name for name in models.names() if models.get(name).modality == input.modality)
                raise ScenarioError(
                    f"model.name: '{spec.name}' reads examples of kind {found.modality}, but the data are of kind "
                    f"{input.modality}; use one of: {', '.join(fitting)}"
                )
            try:
                return found(**spec.parameters).build(input)
            except ParameterError as error:
                raise error.at("model", also=["name"]) from error
        return _build_users(spec, found, input)


def _build_users(spec: Model, function: Callable[..., Any], input: InputSpec) -> nn.Module:
    where = f"model '{spec.name}'"
    if not callable(function):
        raise ScenarioError(f"{where}: is {type(function).__name__}, expected a function that returns a torch.nn.Module")
    arguments = _users_arguments(where, function, spec.parameters, input)
    try:
        model = function(**arguments)
    except KeyboardInterrupt:
        raise
    # The user's function may raise anything, and must not end the program.
    except BaseException as error:
        raise ScenarioError(f"{where}: raised {told(error)}; called with {_listed(arguments)}") from error
    if not isinstance(model, nn.Module):
        raise ScenarioError(f"{where}: returned {type(model).__name__}, expected a torch.nn.Module")
    _check_parameters(where, model)
    return ready(model, input, spec.output, where).train()


def _users_arguments(where: str, function: Callable[..., Any], parameters: dict[str, Any], input: InputSpec) -> dict[str, Any]:
    try:
        signature = inspect.signature(function).parameters
    except ValueError as error:
        raise ScenarioError(f"{where}: {error}; expected a Python function that returns a torch.nn.Module") from error
    keywords = {name for name, p in signature.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    for key in parameters:
        if key not in keywords and not takes_any:
            hint = nearest(key, keywords) if keywords else "it takes none"
            raise ScenarioError(f"{where}: model.{key}: the function has no such parameter; {hint}")
    offered = {"num_classes": input.num_classes, "input_shape": input.shape, "in_channels": input.shape[0]}
    arguments = {key: value for key, value in offered.items() if key in keywords} | parameters
    for name in sorted(keywords - set(arguments)):
        if signature[name].default is inspect.Parameter.empty:
            raise ScenarioError(f"{where}: the function needs '{name}'; give model.{name}")
    return arguments


def _check_parameters(where: str, model: nn.Module) -> None:
    """Refuse a network that nobody could train."""
    named = dict(model.named_parameters())
    if not named:
        raise ScenarioError(f"{where}: has no parameters, so there is nothing to train")
    if not any(value.requires_grad for value in named.values()):
        raise ScenarioError(f"{where}: all of its parameters are frozen; set requires_grad to True of those that clients train")


def _listed(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"
