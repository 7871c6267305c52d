"""What every defense is: a client-side plugin with up to three hooks, and the chain that runs them in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from fedleak.observation import InputSpec, Tensors
from fedleak.registry import Registry
from fedleak.scenario import DefenseSpec
from fedleak.seeding import Seed
from fedleak.validation import read_parameters

Protocol = Literal["fedsgd", "fedavg"]


class DefenseConfig(BaseModel):
    """Parameters of a defense."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Situation:
    """Where a defense is running.

    Attributes
    ----------
    seed : Seed
        Derived for this defense, round and client; all draws derive from it.
    round, client : int
        Round from 1, and partition id from 0.
    input : InputSpec
        What the model takes.
    """

    seed: Seed
    round: int
    client: int
    input: InputSpec


class Defense:
    """Protects a client's update; subclasses override the hooks that they use.

    Parameters
    ----------
    **parameters
        The fields of the class's ``Config``.

    Raises
    ------
    ParameterError
        If a parameter is unknown or out of range.
    """

    name: ClassVar[str]
    protocols: ClassVar[frozenset[Protocol]] = frozenset({"fedsgd", "fedavg"})
    identity: ClassVar[dict[str, Any]]
    """Parameters at which the defense changes nothing; the contract test holds it to that."""
    Config: ClassVar[type[DefenseConfig]] = DefenseConfig

    def __init__(self, **parameters: Any) -> None:
        self.config = read_parameters(self.Config, parameters, f"defense '{self.name}'")

    def on_model(self, model: nn.Module, situation: Situation) -> None:
        """Change the client's model in place before local training; parameter names must stay."""

    def on_batch(self, images: Tensor, labels: Tensor, situation: Situation) -> tuple[Tensor, Tensor]:
        """Return what to train on in place of ``images`` (B, C, H, W) in [0, 1] and ``labels`` (B,)."""
        return images, labels

    def on_update(self, update: Tensors, situation: Situation) -> Tensors:
        """Return the update to send: float parameters only, the same names, shapes and dtypes.

        For FedSGD ``update`` is the gradient; for FedAvg it is the change of the weights, trained minus received.
        Buffers are never passed.
        """
        return update


defenses: Registry[type[Defense]] = Registry("defense", "fedleak.defenses", Defense)


class DefenseChain:
    """The defenses of a scenario, run in order."""

    def __init__(self, specs: Sequence[DefenseSpec], input: InputSpec, seed: Seed) -> None:
        self._defenses = [defenses.get(spec.name)(**spec.parameters) for spec in specs]
        self._input = input
        self._seed = seed

    def __bool__(self) -> bool:
        return bool(self._defenses)

    def _at(self, server_round: int, client: int) -> list[tuple[Defense, Situation]]:
        steps = []
        for position, defense in enumerate(self._defenses):
            seed = self._seed.derive("defense", defense.name, position, server_round, client)
            steps.append((defense, Situation(seed, server_round, client, self._input)))
        return steps

    def on_model(self, model: nn.Module, server_round: int, client: int) -> None:
        """Run every defense's hook on the model."""
        for defense, situation in self._at(server_round, client):
            defense.on_model(model, situation)

    def on_batch(self, images: Tensor, labels: Tensor, server_round: int, client: int, step: int) -> tuple[Tensor, Tensor]:
        """Run every defense's hook on the batch of local step ``step``."""
        for defense, at in self._at(server_round, client):
            situation = Situation(at.seed.derive("step", step), at.round, at.client, at.input)
            images, labels = defense.on_batch(images, labels, situation)
        return images, labels

    def on_update(self, update: Tensors, server_round: int, client: int) -> Tensors:
        """Run every defense's hook on the update."""
        for defense, situation in self._at(server_round, client):
            update = defense.on_update(update, situation)
        return update
