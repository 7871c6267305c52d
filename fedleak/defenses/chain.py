"""The defenses of a scenario as one: which combinations make sense, and each hook run in the order of the list."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fedleak.defenses.base import Defense, Protocol, Situation, defenses
from fedleak.errors import DefenseError, ScenarioError
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import Tensors
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


class ChainAt:
    """The chain of one client in one round; see :class:`~fedleak.defenses.base.Defense` for what each hook does."""

    def __init__(self, steps: Sequence[tuple[Defense, Situation]]) -> None:
        self._steps = steps

    def on_model(self, model: nn.Module) -> None:
        """Run every defense's hook on the model."""
        for defense, situation in self._steps:
            defense.on_model(model, situation)

    def on_batch(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Run every defense's hook on the batch of local step ``step``."""
        for defense, at in self._steps:
            images, labels = defense.on_batch(images, labels, _in_step(at, step))
        return images, labels

    def on_loss(self, loss: Tensor, model: nn.Module) -> Tensor:
        """Run every defense's hook on a local step's loss."""
        for defense, _ in self._steps:
            loss = defense.on_loss(loss, model)
        return loss

    def on_gradient(self, gradient: Tensors, model: nn.Module, images: Tensor, labels: Tensor, step: int) -> Tensors:
        """Run every defense's hook on the gradient of local step ``step``."""
        for defense, at in self._steps:
            gradient = defense.on_gradient(gradient, model, images, labels, _in_step(at, step))
        return gradient

    def on_update(self, update: Tensors) -> Tensors:
        """Run every defense's hook on the update."""
        for defense, situation in self._steps:
            update = defense.on_update(update, situation)
        return update


def _in_step(at: Situation, step: int) -> Situation:
    return Situation(at.seed.derive("step", step), at.round, at.client, at.input, at.protocol, at.memory)


def defended_model(scenario: Scenario, input: InputSpec, *, verify: bool = False) -> nn.Module:
    """Return the network that the federation trains: the scenario's model, as its defenses change it, at initialisation.

    Parameters
    ----------
    verify : bool
        Whether each defense is first asked if the scenario can carry it.

    Raises
    ------
    ScenarioError
        If the model cannot be built, or cannot carry a defense.
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
