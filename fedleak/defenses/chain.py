"""The defenses of a scenario as one: which combinations make sense, and each hook run in the order of the list."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from fedleak.defenses.base import Defense, Protocol, Situation, defenses
from fedleak.errors import DefenseError, ScenarioError
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.models.weights import load_weights
from fedleak.observation import Tensors
from fedleak.payload import Payload
from fedleak.scenario.schema import DefenseSpec, Scenario
from fedleak.seeding import Seed


class DefenseChain:
    """The defenses of a scenario, run in order.

    Parameters
    ----------
    specs : sequence of DefenseSpec
        Which, with their parameters.
    input : InputSpec
        What the model takes.
    seed : Seed
        Of the clients; all the defenses' draws derive from it.
    protocol : {"fedsgd", "fedavg"}
        What clients send.
    """

    def __init__(self, specs: Sequence[DefenseSpec], input: InputSpec, seed: Seed, protocol: Protocol = "fedsgd") -> None:
        self._defenses = [defenses.get(spec.name)(**spec.parameters) for spec in specs]
        self._input = input
        self._seed = seed
        self._protocol = protocol

    def __bool__(self) -> bool:
        return bool(self._defenses)

    @property
    def private(self) -> bool:
        """Whether a defense is a mechanism of differential privacy, so that nothing else of the images may be sent."""
        return any(defense.mechanism() is not None for defense in self._defenses)

    @property
    def protects_alone(self) -> bool:
        """Whether what a client sends is meant to differ from its raw update: not where the protocol around it protects."""
        return bool(self._defenses) and all(defense.protects_alone for defense in self._defenses)

    def at(self, server_round: int, client: int, memory: Sequence[Tensors] | None = None) -> ChainAt:
        """Return the chain for one client in one round.

        Parameters
        ----------
        memory : sequence of dict of str to Tensor, optional
            What each defense, by position, keeps of this client; written into.
        """
        kept = memory if memory is not None else self.no_memory()
        steps = []
        for position, defense in enumerate(self._defenses):
            seed = self._seed.derive("defense", defense.name, position, server_round, client)
            situation = Situation(seed, server_round, client, self._input, self._protocol, kept[position])
            steps.append((defense, situation))
        return ChainAt(steps)

    def no_memory(self) -> list[Tensors]:
        """Return what the defenses keep of a client that they have not met."""
        return [{} for _ in self._defenses]


TELLING = 1e-3
"""Change of a batch, loss or gradient, relative to its norm, above which it is no rounding; how much above is not looked at."""


class ChainAt:
    """The chain of one client in one round; see :class:`~fedleak.defenses.base.Defense` for what each hook does.

    Attributes
    ----------
    change : float
        The largest change that a hook of local training made so far, relative to the norm of what it was given; infinite where a
        defense works on the network itself. The hook on the update is not counted.
    """

    def __init__(self, steps: Sequence[tuple[Defense, Situation]]) -> None:
        self._steps = steps
        self.change = math.inf if any(_works_on_network(defense) for defense, _ in steps) else 0.0

    def on_model(self, model: nn.Module) -> None:
        """Run every defense's hook on the model."""
        for defense, situation in self._steps:
            defense.on_model(model, situation)

    def on_batch(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Run every defense's hook on the batch of local step ``step``."""
        before = {"images": images, "labels": labels}
        for defense, at in self._steps:
            images, labels = defense.on_batch(images, labels, _in_step(at, step))
        self._note(before, {"images": images, "labels": _as_given(labels, before["labels"])})
        return images, labels

    def on_loss(self, loss: Tensor, model: nn.Module) -> Tensor:
        """Run every defense's hook on a local step's loss."""
        before = {"loss": loss}
        for defense, _ in self._steps:
            loss = defense.on_loss(loss, model)
        self._note(before, {"loss": loss})
        return loss

    def on_gradient(self, gradient: Tensors, model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Tensors:
        """Run every defense's hook on the gradient of local step ``step``."""
        before = gradient
        for defense, at in self._steps:
            gradient = defense.on_gradient(gradient, model, images, labels, _in_step(at, step))
        self._note(before, gradient)
        return gradient

    def _note(self, before: Tensors, after: Tensors) -> None:
        if self.change <= TELLING:
            self.change = max(self.change, relative_change(before, after))

    def on_update(self, update: Tensors) -> Tensors:
        """Run every defense's hook on the update."""
        for defense, situation in self._steps:
            update = defense.on_update(update, situation)
        return update


def relative_change(before: Tensors, after: Tensors) -> float:
    """Return the norm of the difference over that of ``before``; infinite where names, shapes or types differ."""
    if all(after.get(name) is value for name, value in before.items()) and len(after) == len(before):
        return 0.0
    changed, whole = 0.0, 0.0
    for name, value in before.items():
        other = after.get(name)
        if other is None or other.shape != value.shape or other.dtype != value.dtype:
            return math.inf
        first = value.detach().double()
        changed += float((other.detach().double() - first).square().sum())
        whole += float(first.square().sum())
    if changed == 0:
        return 0.0
    return math.sqrt(changed / whole) if whole else math.inf


def _as_given(labels: Tensor, like: Tensor) -> Tensor:
    """Return probabilities (B, K) that are one-hot as class indices where the labels given were such; others as they are."""
    if labels.is_floating_point() and not like.is_floating_point() and bool((labels.amax(-1) == 1).all()):
        return labels.argmax(-1).to(like.dtype)
    return labels


def _works_on_network(defense: Defense) -> bool:
    """Whether a defense changes the network, so that what it does cannot be told from a gradient or an update."""
    plain = all(getattr(defense.config, name, None) == value for name, value in defense.identity.items())
    own = any(getattr(type(defense), hook) is not getattr(Defense, hook) for hook in ("on_architecture", "on_model"))
    return own and not plain


def _in_step(at: Situation, step: int) -> Situation:
    return Situation(at.seed.derive("step", step), at.round, at.client, at.input, at.protocol, at.memory)


def defended_model(scenario: Scenario, input: InputSpec, *, verify: bool = False) -> nn.Module:
    """Return the network that the federation trains: the scenario's model, as its defenses change it, at initialisation.

    What does not travel is frozen, and is that of ``model.weights`` where there are any.

    Parameters
    ----------
    verify : bool
        Whether each defense is first asked if the scenario can carry it.

    Raises
    ------
    ScenarioError
        If the model cannot be built, cannot carry a defense, or has nothing to send.
    """
    model = build_model(scenario.model, input, scenario.seed)
    for position, spec in enumerate(scenario.defenses):
        defense = defenses.get(spec.name)(**spec.parameters)
        try:
            if verify:
                defense.verify(scenario, model, input)
            model = defense.on_architecture(model, input, Seed(scenario.seed).derive("architecture", spec.name, position))
        except DefenseError as error:
            raise ScenarioError(f"defenses[{position}]: {error}") from error
    payload = Payload.of(model, scenario.federation.payload)
    payload.freeze(model)
    if not payload.whole and scenario.model.weights is not None:  # nobody sends what does not travel
        load_weights(model, scenario.model.weights)
    return model


def check_combination(plugins: Sequence[type[Defense]]) -> None:
    """Refuse defenses that exclude each other, or whose order makes no sense.

    Raises
    ------
    DefenseError
        Which two, and why.
    """
    for place, first in enumerate(plugins):
        for second in plugins[place + 1 :]:
            for one, other in ((first, second), (second, first)):
                if other.name in one.excludes:
                    reason = one.excludes[other.name]
                    raise DefenseError(f"'{first.name}' cannot be combined with {_other(first, second)}: {reason}; leave one out")
            if second.name in first.not_before:
                raise DefenseError(
                    f"'{first.name}' must not come before '{second.name}': {first.not_before[second.name]}; exchange the two"
                )


def _other(first: type[Defense], second: type[Defense]) -> str:
    return "another of its kind" if first.name == second.name else f"'{second.name}'"
