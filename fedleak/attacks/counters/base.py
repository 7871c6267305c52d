"""What every counter is: how to attack through one defense, whose parameters are known.

A counter changes neither objective nor optimiser of an attack by gradient matching: it changes what is matched. It may clean
the observation, pass the guess through the defense, leave out what the defense has destroyed, and add unknowns of its own,
such as the masks that the client drew. Its module says how in a ``Formula`` line, and from where in a ``Source`` line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from fedleak.defenses.base import DefenseConfig, defenses
from fedleak.modalities.image import InputSpec
from fedleak.observation import Observation, Tensors
from fedleak.registry import Registry


class Countered(Protocol):
    """What a counter sees of the network and the gradient that are matched, and what of it it may change.

    Attributes
    ----------
    observed : list of Tensor
        The gradient to match, by parameter; a counter may put another in its place.
    parameters : dict of str to Tensor
        As sent.
    input : InputSpec
        What the network takes.
    counters : tuple of Counter
        All that are at work, in the order of the defenses.
    weighs_noise : bool
        Whether the attack weighs likelihood against prior itself.
    joined : int
        How many updates are matched together.
    """

    observed: list[Tensor]
    parameters: Tensors
    input: InputSpec
    counters: tuple[Counter, ...]
    weighs_noise: bool
    joined: int

    @property
    def network(self) -> nn.Module:
        """The module that computes, for forward hooks; its own parameters are not used."""


class Counter:
    """Knows one defense; subclasses override the hooks that they use. One is made for each update that is attacked.

    Parameters
    ----------
    parameters : mapping
        The defense's own.
    observation : Observation
        The update that is attacked.
    way : str, optional
        One of ``ways``; the first by default.

    Raises
    ------
    ParameterError
        If they are not the defense's parameters.
    """

    name: ClassVar[str]
    """The defense's."""
    ways: ClassVar[tuple[str, ...]] = ()
    """How it can go about it, where there is a choice."""

    def __init__(self, parameters: Mapping[str, Any], observation: Observation, way: str | None = None) -> None:
        self.config: DefenseConfig = defenses.get(self.name)(**parameters).config
        self.observation = observation
        self.way = way if way is not None else next(iter(self.ways), None)

    def clean(self, observation: Observation) -> Observation:
        """Return the observation to restore labels from and to match in place of the one received; the same by default."""
        return observation

    def observe(self, victim: Countered) -> None:
        """Look at the network and the gradient to match, and change ``victim.observed`` where entries are to be left out.

        What more the update tells can be appended, as further tensors that :meth:`guess` appends as well: later counters are
        given them too.
        """

    def start(self, victim: Countered, generator: torch.Generator) -> list[Tensor]:
        """Return further unknowns of one start, optimised with the images: floats without bounds; none by default.

        How many images there are, ``self.observation.batch_size`` says.
        """
        return []

    def batch(self, inputs: Tensor, targets: Tensor, others: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the batch that the client trained on, had it had the guess.

        Parameters
        ----------
        inputs : Tensor
            Model inputs (B, C, H, W).
        targets : Tensor
            Class probabilities (B, K).
        others : sequence of Tensor
            This counter's own unknowns.
        """
        return inputs, targets

    def forward(self, network: nn.Module, others: Sequence[Tensor]) -> AbstractContextManager[Any]:
        """Return a context in which ``network`` computes what the client's did, by hooks; nothing changes by default."""
        return nullcontext()

    def loss(self, loss: Tensor, network: nn.Module) -> Tensor:
        """Return what the client differentiated in place of the mean cross-entropy, inside the context of :meth:`forward`."""
        return loss

    def guess(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Return what the client would have sent of a gradient, by parameter; differentiable, and zero where it is left out."""
        return guessed

    def compare(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Return the guess with the entries that do not contradict what was observed set to it; the same by default.

        For defenses that tell of an entry no more than a range: a guess within it fits, and one beyond it is off by the rest.

        Parameters
        ----------
        guessed, observed : sequence of Tensor
            What the client would have sent of a gradient and what is matched, by parameter.
        """
        return guessed

    def noise(self, variances: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Return the variance of what is random in each entry observed, given that before this defense; the same by default."""
        return variances

    def follow(self, earlier: Counter) -> None:
        """Take note of this defense's counter for the client's update before; its guess is made before this one's."""

    def penalty(self, others: Sequence[Tensor]) -> Tensor | None:
        """Return what is added to the attack's loss for this counter's unknowns, scalar; nothing by default."""
        return None

    def restore(self, images: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Return the private images behind those that an attack has ended with, pixels (B, C, H, W); the same by default.

        For what is better undone afterwards than modelled while matching; ``others`` are the unknowns as they ended.
        """
        return images


counters: Registry[type[Counter]] = Registry("counter", "fedleak.attacks.counters", Counter)


def leave_out(tensors: Sequence[Tensor], names: Sequence[str], left_out: frozenset[str]) -> list[Tensor]:
    """Return ``tensors`` with those of the names in ``left_out`` at zero, which no distance then sees."""
    return [torch.zeros_like(value) if name in left_out else value for name, value in zip(names, tensors, strict=True)]


def unit(observation: Observation) -> float:
    """Return by what a change of the weights is divided to be a gradient, but for its sign; 1 where gradients are sent."""
    if observation.kind == "gradient" or observation.local is None:
        return 1.0
    path = observation.local.path
    return sum(observation.local.step_rates) if path is None else path.scale


def change(observation: Observation) -> Tensors:
    """Return what the defenses on the update were given, by parameter: a gradient, or the weights' change (new minus old)."""
    if observation.kind == "gradient":
        return observation.update
    return {name: value - observation.parameters[name] for name, value in observation.update.items()}


def changed(observation: Observation, update: Tensors) -> Observation:
    """Return the observation with ``update`` in place of what :func:`change` returns of it."""
    if observation.kind == "weights":
        update = {name: observation.parameters[name] + value for name, value in update.items()}
    return replace(observation, update=update)
