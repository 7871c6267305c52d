"""What a scenario would take of this machine's memory at the very least, told before anything of it is taken.

Networks are built and run on PyTorch's device "meta", which knows shapes and holds no values. Every figure is a lower bound:
what is refused could not have been; what is let pass may still be slow, or need more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedleak.attacks.base import attacks
from fedleak.engines.room import LOCAL, ray_address
from fedleak.errors import ScenarioError
from fedleak.modalities.image import InputSpec
from fedleak.models import ModelBuilder, build_model, models
from fedleak.positions.terms import Terms
from fedleak.printable import plural
from fedleak.process.memory import machine_memory, said_bytes
from fedleak.sandbox.probe import probe
from fedleak.scenario.ranges import MOST_COUNT
from fedleak.scenario.schema import Data, Scenario

_FLOAT = 4  # bytes
_KEPT = 1000  # numbers that a pass keeps of each of an image's, more than networks of this size do
_TESTED = 256  # test images that are looked at together


@dataclass(frozen=True)
class Footprint:
    """What one network takes, in bytes.

    Attributes
    ----------
    parameters : int
        Of its parameters and buffers.
    saved : int
        What a forward pass of one batch keeps for the pass backward, without the parameters.
    """

    parameters: int
    saved: int


@dataclass(frozen=True)
class _Need:
    what: str
    bytes: int
    remedy: str
    device: str = "cpu"


def check_images(data: Data) -> None:
    """Refuse images of a size of which this machine could not hold a single one.

    Raises
    ------
    ScenarioError
        With what one takes, and what there is.
    """
    if data.image_size is not None:
        values = 3 * data.image_size**2
        side = f"{data.image_size:,}"
        _refuse([_Need(f"data.image_size: one image of {side} x {side} pixels", values * (2 + _FLOAT), "lower it")])


def check_memory(
    scenario: Scenario, input: InputSpec, largest_shard: int, tests: int, device: str, model: nn.Module | None
) -> None:
    """Refuse a scenario whose network, batch, replies, grading or attack could not be held.

    Parameters
    ----------
    input : InputSpec
        What a model takes.
    largest_shard : int
        Images of the client with the most.
    tests : int
        Test images.
    device : str
        Where attacks compute.
    model : Module or None
        The network, where it was built already; ``None`` has one of the zoo measured without building it. The user's own
        function cannot be called for that.

    Raises
    ------
    ScenarioError
        What takes how much, how much there is, and which key to lower.
    """
    batch = min(scenario.local.batch_size, largest_shard)
    _check_steps(scenario, largest_shard)
    if model is None:
        _refuse(_needs_of_images(scenario, input, largest_shard, tests))
        model = _sketch(scenario, input)
    if model is None:
        return
    _refuse(_needs_of_model(scenario, input, model, largest_shard, batch, device))


def footprint(model: nn.Module, input: InputSpec, batch: int) -> Footprint:
    """Return what a network takes; where it cannot run without values, ``saved`` is 0.

    Parameters
    ----------
    model : Module
        On any device; it is left as it is.
    batch : int
        Images of the forward pass.
    """
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    empty = {name: torch.empty_like(value, device="meta") for name, value in tensors.items()}
    for name, value in model.named_parameters():
        empty[name].requires_grad_(value.requires_grad)
    own = {value.untyped_storage()._cdata for value in empty.values()}
    saved: dict[int, torch.Tensor] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if (place := value.untyped_storage()._cdata) not in own:
            saved[place] = value
        return value

    images = torch.empty(batch, *input.shape, dtype=getattr(torch, input.dtype), device="meta")
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            output: Any = torch.func.functional_call(model, empty, (images,))
    # The user's own network may raise anything, and need not be able to run on this device.
    except Exception:  # noqa: BLE001
        saved.clear()
    else:
        del output
    return Footprint(sum(map(_bytes, empty.values())), sum(map(_bytes, saved.values())))


def _measured(model: nn.Module, input: InputSpec, batch: int, times: int = 1) -> Footprint:
    """Return a footprint, ``saved`` as 0 where so many passes together are surely no matter on this machine.

    Running a network on the device "meta" imports PyTorch's compiler, which takes longer than all else that is checked.
    """
    own = sum(_bytes(value) for value in (*model.parameters(), *model.buffers()))
    there = machine_memory()
    small = there is not None and own <= there // 64 and _KEPT * _FLOAT * math.prod(input.shape) * batch * times <= there // 4
    return Footprint(own, 0) if small else footprint(model, input, batch)


def _bytes(value: torch.Tensor) -> int:
    return value.numel() * value.element_size()


def _check_steps(scenario: Scenario, largest_shard: int) -> None:
    epochs, per_pass = scenario.local.epochs, -(-largest_shard // min(scenario.local.taken_together, largest_shard))
    if scenario.federation.protocol == "fedavg" and scenario.local.steps is None and epochs * per_pass > MOST_COUNT:
        raise ScenarioError(
            f"local.epochs: {epochs:,} passes of {per_pass:,} batches are {epochs * per_pass:,} local steps a round; expected at "
            f"most {MOST_COUNT:,}"
        )


def _sketch(scenario: Scenario, input: InputSpec) -> nn.Module | None:
    """Return the scenario's network without values, or ``None`` for the user's own."""
    try:
        found = models.get(scenario.model.name)
    except ScenarioError as error:
        raise ScenarioError(f"model.name: {error}") from error
    if not (isinstance(found, type) and issubclass(found, ModelBuilder)):
        return None
    try:
        with torch.device("meta"):
            return build_model(scenario.model, input, scenario.seed)
    except (RuntimeError, OverflowError, TypeError, ValueError) as error:  # more entries than 64 bits count
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ScenarioError(f"model: a network of this size cannot be ({first}); lower its widths or data.image_size") from error


def _needs_of_images(scenario: Scenario, input: InputSpec, largest_shard: int, tests: int) -> Iterator[_Need]:
    image = _FLOAT * math.prod(input.shape)
    sizes = " x ".join(f"{side:,}" for side in input.shape)
    if _clients_here(scenario) and scenario.server.curious and scenario.attacks:
        yield _Need(
            f"data.shard_size: grading beside a client's {largest_shard:,} images of {sizes}",
            image * largest_shard,
            "lower it, or data.image_size",
        )
    if tests:
        yield _Need(
            f"data.image_size: {min(_TESTED, tests)} test images of {sizes} at a time", image * min(_TESTED, tests), "lower it"
        )


def _needs_of_model(
    scenario: Scenario, input: InputSpec, model: nn.Module, largest_shard: int, batch: int, device: str
) -> Iterator[_Need]:
    image = _FLOAT * math.prod(input.shape)
    one, sampled = _measured(model, input, batch), scenario.federation.sampled
    weights = f"{sum(value.numel() for value in model.parameters()):,} parameters"
    yield _Need(f"model: a network of {weights}", 2 * one.parameters, "lower its widths or data.image_size")
    yield _Need(
        f"federation.clients_per_round: holding a round's {sampled:,} updates of {weights}",
        sampled * one.parameters,
        "sample fewer a round, or take a smaller model",
    )
    if _clients_here(scenario):
        yield _Need(
            f"local.batch_size: a local step on {batch:,} images with {weights}",
            2 * one.parameters + one.saved + batch * image,
            "lower it, the model's widths or data.image_size",
            scenario.local.device,
        )
    if not scenario.server.curious:
        return
    clients = sampled if Terms.of(scenario).sums else 1
    local = Terms.of(scenario).local_training(largest_shard * clients, clients)
    for number, spec in enumerate(scenario.attacks):
        attack = attacks.get(spec.name)(**spec.parameters)
        simulates = attack.models_local_steps and local.steps > 1
        images = local.batch_size if simulates or scenario.federation.protocol == "fedsgd" else local.num_examples
        steps = local.steps if simulates else 1
        # Of the loss that the client took, and of the gradient's own.
        graph = 2 * _measured(model, input, images, 2 * steps).saved * steps if attack.differentiates_twice else 0
        yield _Need(
            f"attacks[{number}]: '{spec.name}' on {plural(images, 'image')} and {plural(steps, 'local step')}",
            3 * one.parameters + graph,
            "use a smaller batch or model, fewer local steps, or another attack",
            device,
        )


def _clients_here(scenario: Scenario) -> bool:
    """Whether this machine's memory is what clients train in."""
    engine = scenario.federation.engine
    return engine == "inprocess" or (engine == "ray" and ray_address() == LOCAL)


def _refuse(needs: Iterator[_Need] | list[_Need]) -> None:
    for need in needs:
        there, place = _there(need.device)
        if there is not None and need.bytes > there:
            raise ScenarioError(
                f"{need.what} needs at least {said_bytes(need.bytes)}, but {place} has {said_bytes(there)}; {need.remedy}"
            )


def _there(device: str) -> tuple[int | None, str]:
    if device.startswith("cuda"):
        return probe(device).memory, f"'{device}'"
    return machine_memory(), "this machine"
