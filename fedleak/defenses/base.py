"""What every defense is: a client-side plugin with a hook for each thing that it may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from fedleak.modalities.image import InputSpec
from fedleak.observation import Tensors
from fedleak.registry import Registry
from fedleak.scenario.ranges import Parameters
from fedleak.scenario.schema import Scenario
from fedleak.scenario.validation import read_parameters
from fedleak.seeding import Seed

Protocol = Literal["fedsgd", "fedavg"]


UNDEFENDED = "undefended"
"""Beside the buffers in a client's reply: that no defense changed its update. Left out where one did."""


class DefenseConfig(Parameters):
    """Parameters of a defense."""


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
    protocol : {"fedsgd", "fedavg"}
        Whether the update is a gradient or the change of the weights.
    memory : dict of str to Tensor
        What this defense keeps of this client from round to round, empty at first; write into it. It lives in the client's
        Flower context: a client that is started anew begins without.
    """

    seed: Seed
    round: int
    client: int
    input: InputSpec
    protocol: Protocol = "fedsgd"
    memory: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Mechanism:
    """A Gaussian mechanism of differential privacy, for the accountant (:mod:`fedleak.evaluation.privacy`).

    Attributes
    ----------
    unit : {"record", "client"}
        What is protected: each image of a client, noised wherever a local step uses it; or all that a client holds, noised
        once a round.
    noise_multiplier : float
        Standard deviation of the noise over the largest norm of what one unit contributes.
    sample_rate : float
        Probability in (0, 1] with which a use takes the unit, drawn independently and kept secret (Poisson sampling).
    flaw : str
        Why it gives no guarantee at all; empty if it gives one.
    """

    unit: Literal["record", "client"]
    noise_multiplier: float
    sample_rate: float = 1.0
    flaw: str = ""


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
    remembers: ClassVar[bool] = False
    """Whether it writes into :attr:`Situation.memory`, which an interrupt loses where clients live in the server's process."""
    modalities: ClassVar[frozenset[str] | None] = None
    """What the examples may be; by default images, and whatever else there is if only the update or the model is changed."""
    protects_alone: ClassVar[bool] = True
    """Whether a client's update changes by itself; false where only the protocol around it does."""
    only_sums: ClassVar[bool] = False
    """Whether the server is left with one sum of each round in place of the clients' updates."""
    flags: ClassVar[tuple[str, ...]] = ()
    """Names in :data:`fedleak.evaluation.flags.FLAGS` that every update of a client with it raises."""
    excludes: ClassVar[Mapping[str, str]] = {}
    """Defenses that it cannot be combined with, its own name for no second one of it; each with the reason."""
    not_before: ClassVar[Mapping[str, str]] = {}
    """Defenses that must not come later in the list than it does; each with the reason."""
    Config: ClassVar[type[DefenseConfig]] = DefenseConfig

    def __init__(self, **parameters: Any) -> None:
        self.config = read_parameters(self.Config, parameters, f"defense '{self.name}'")

    def verify(self, scenario: Scenario, model: nn.Module, input: InputSpec) -> None:
        """Refuse a scenario that cannot carry the defense, before anything starts; by default nothing is refused.

        Parameters
        ----------
        scenario : Scenario
            As it would run.
        model : Module
            The network at initialisation, with the earlier defenses' changes; must not be changed.
        input : InputSpec
            What it takes.

        Raises
        ------
        DefenseError
            What was expected, what came, and what to do.
        """

    @classmethod
    def takes(cls, modality: str) -> bool:
        """Say whether clients whose examples are of a modality can run it."""
        if cls.modalities is not None:
            return modality in cls.modalities
        hooks = ("on_batch", "on_gradient", "on_architecture", "verify")
        return modality == "image" or all(getattr(cls, hook) is getattr(Defense, hook) for hook in hooks)

    def mechanism(self) -> Mechanism | None:
        """Return the mechanism of differential privacy that the defense is, or ``None`` if it is none."""
        return None

    def removed_share(self) -> float:
        """Return which share of an update's entries it sets to zero, in [0, 1], as far as its parameters say it; 0 by default."""
        return 0.0

    def on_architecture(self, model: nn.Module, input: InputSpec, seed: Seed) -> nn.Module:
        """Return the network that the whole federation trains in place of ``model``, which may be changed in place.

        Server, clients and attackers all build it so, from the same seed; parameters may be added here and nowhere else.
        """
        return model

    def on_model(self, model: nn.Module, situation: Situation) -> None:
        """Change the client's model in place before local training; parameter names must stay."""

    def on_batch(self, images: Tensor, labels: Tensor, situation: Situation) -> tuple[Tensor, Tensor]:
        """Return what to train on in place of ``images`` (B, C, H, W) in [0, 1] and ``labels``.

        Labels are class indices (B,) or class probabilities (B, K); both are understood after it.
        """
        return images, labels

    def on_loss(self, loss: Tensor, model: nn.Module) -> Tensor:
        """Return the scalar loss to differentiate in place of a local step's mean cross-entropy."""
        return loss

    def on_gradient(self, gradient: Tensors, model: nn.Module, images: Tensor, labels: Tensor, situation: Situation) -> Tensors:
        """Return the gradient that a local step takes or sends: the same names, shapes and dtypes.

        Parameters
        ----------
        gradient : dict of str to Tensor
            Of the mean loss over the step's batch, by parameter.
        model : Module
            At the parameters that the gradient was taken at, in the client's mode.
        images, labels : Tensor
            The batch as trained on: pixels (B, C, H, W) in [0, 1], and class indices (B,) or probabilities (B, K).
        """
        return gradient

    def on_update(self, update: Tensors, situation: Situation) -> Tensors:
        """Return the update to send: float parameters only, the same names, shapes and dtypes.

        For FedSGD ``update`` is the gradient; for FedAvg it is the change of the weights, trained minus received.
        Buffers are never passed.
        """
        return update

    def value_bits(self, before: float | None) -> float | None:
        """Return how many bits a non-zero value of the update needs after :meth:`on_update`; ``None`` for its own float format.

        By default ``None``: new values. A defense that only sets values to zero, or scales them all alike, returns ``before``,
        what a value needed ahead of it; one that rounds to fewer bits returns those. The run's ``coded_bytes`` rest on it.
        """
        return None


defenses: Registry[type[Defense]] = Registry("defense", "fedleak.defenses", Defense)
