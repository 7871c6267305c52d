"""What every attack is: a frozen config, the knowledge it requires, and one method, ``run``."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from fedleak.errors import AttackError, ParameterError
from fedleak.modalities.image import InputSpec
from fedleak.models.second import twice_differentiable
from fedleak.observation import LocalTraining, Observation, UpdateKind
from fedleak.process.abandoned import process_time
from fedleak.registry import Registry
from fedleak.scenario.ranges import MOST_SECONDS, Parameters
from fedleak.scenario.validation import read_parameters
from fedleak.seeding import Seed
from fedleak.threat import Knowledge


class AttackConfig(Parameters):
    """Parameters that every attack takes; an attack's own stand beside them."""

    labels: str | None = Field(default=None, description="label rule run first, or 'joint': optimised with the images")
    restarts: int = Field(default=1, ge=1, description="starting points; the one with the lowest own loss is kept")
    iterations: int = Field(default=300, ge=1, description="optimiser iterations for each start")
    budget_seconds: float | None = Field(
        default=None, ge=1e-9, le=MOST_SECONDS, description="CPU seconds for each update; no limit by default"
    )


@dataclass(frozen=True)
class Progress:
    """How far an attack is.

    Attributes
    ----------
    attack : str
        Its name.
    round, client : int
        Whose update it is at work on.
    iteration, iterations : int
        Of the current start, and at most.
    loss : float
        The attack's own objective.
    seconds_left : float, optional
        CPU seconds until the update is done, at the pace so far and at most: starts may end early.
    """

    attack: str
    round: int
    client: int
    iteration: int
    iterations: int
    loss: float
    seconds_left: float | None = None


@dataclass
class Budget:
    """How much one client's update may cost, and whom to tell how far the attack is.

    Attributes
    ----------
    seconds : float or None
        CPU seconds of this process, without those of earlier attacks that could not be stopped; ``None`` for no limit.
    iterations : int
        Optimiser iterations for each start.
    done : int
        Iterations of the present start that earlier descents have taken.
    """

    seconds: float | None
    iterations: int
    on_progress: Callable[[Progress], None] | None = None
    done: int = 0
    _attack: str = ""
    _observation: Observation | None = None
    _started: float = field(default_factory=process_time)
    _begun: float = field(default_factory=process_time)
    _further: float = 0.0

    def begin(self, attack: str, observation: Observation) -> None:
        """Count CPU seconds from now, for the update in ``observation``."""
        self._attack, self._observation = attack, observation
        self._started = self._begun = process_time()

    def start(self, further: float) -> None:
        """Begin a start, after which so many more may be needed at most; the time left is told from it."""
        self._begun, self._further = process_time(), further

    def tick(self, iteration: int, loss: float) -> None:
        """Tell how far the attack is; call it at every iteration."""
        if self.on_progress is not None and self._observation is not None:
            at, now = self._observation, self.done + iteration
            self.on_progress(Progress(self._attack, at.round, at.client, now, self.iterations, loss, self._seconds_left(now + 1)))

    def _seconds_left(self, done: int) -> float:
        """Return the CPU seconds that are left at most, if what is to come is no slower than what was done."""
        left = max(0.0, self.iterations * (1 + self._further) - done) * (process_time() - self._begun) / done
        return left if self.seconds is None else min(left, max(0.0, self.seconds - self.spent))

    @property
    def spent(self) -> float:
        """CPU seconds since the clock started."""
        return process_time() - self._started

    @property
    def exhausted(self) -> bool:
        """Whether no CPU seconds are left."""
        return self.seconds is not None and self.spent >= self.seconds


@dataclass(frozen=True)
class Reconstruction:
    """What an attack made of one observation.

    Attributes
    ----------
    images : Tensor or None
        (B, C, H, W) pixels, meant for [0, 1] but not clamped; ``None`` if the attack failed.
    labels : tuple of int, optional
        One for each image, or ``None`` if the attack does not restore them.
    loss, initial_loss : float, optional
        The attack's own objective at the end and at the start of the start that was kept.
    iterations : int
        Spent over all starts.
    stop_reason : str
        Why it stopped: ``"converged"``, ``"flat"``, ``"iterations"``, ``"budget"``, ``"solved"``, ``"failed"``, or
        ``"non-finite"`` where the images are the best of a start whose loss later ceased to be finite.
    flags : tuple of str
        Names of sanity flags that only the attack can know, such as ``"non-finite-restart"``.
    method : str
        How the result came about, where the attack chose among several ways: which one, and why; empty elsewhere.
    error : str, optional
        Why there are no images.
    round, client, attack, seconds, cpu_seconds
        Filled in by the base class.
    """

    images: Tensor | None
    labels: tuple[int, ...] | None = None
    loss: float | None = None
    initial_loss: float | None = None
    iterations: int = 0
    stop_reason: str = "solved"
    flags: tuple[str, ...] = ()
    method: str = ""
    error: str | None = None
    round: int = 1
    client: int = 0
    attack: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0


class Attack(ABC):
    """Rebuilds private batches from observations.

    An attack is one file: subclass, name it, say what it requires, and implement :meth:`reconstruct` (one
    observation at a time) or :meth:`run` (all observations of a round at once). It sees an
    :class:`~fedleak.observation.Observation` and nothing else, and chooses between restarts by its own loss.

    Parameters
    ----------
    **parameters
        The fields of the class's ``Config``.

    Raises
    ------
    ParameterError
        If a parameter is unknown or out of range, or asks for joint labels of an attack that has none.
    """

    name: ClassVar[str]
    requires: ClassVar[frozenset[Knowledge]] = frozenset()
    kinds: ClassVar[frozenset[UpdateKind]] = frozenset({"gradient", "weights"})
    modalities: ClassVar[frozenset[str]] = frozenset({"image"})
    """What it rebuilds."""
    exact: ClassVar[bool] = False
    """Whether it solves equations, so that a result whose gradient fits is the solution and one that does not fit is none."""
    own_labels: ClassVar[bool] = False
    """Whether it reads labels off the update in a way of its own where no rule is named."""
    models_local_steps: ClassVar[bool] = False
    """Whether several local steps are told apart, instead of being read as one averaged gradient."""
    reads: ClassVar[Literal["all", "some", "alone"]] = "all"
    """Of which parameters the update must travel: all; some, with the others known; or some, whatever the others are."""
    differentiates_twice: ClassVar[bool] = False
    """Whether it differentiates the network's gradient, so that it is refused for a network that has no second derivative."""
    joint_labels: ClassVar[bool] = False
    """Whether it can optimise soft labels together with the images, which ``labels = "joint"`` asks for."""
    at_once: ClassVar[bool] = False
    """Whether :meth:`run` is the attack's own and is to be given all observations of a round at once, instead of one by one."""
    remembers: bool = False
    """Whether :meth:`remember` keeps anything, so that every round must be shown to it."""
    in_order: ClassVar[bool] = False
    """Whether what it made of earlier updates decides what it makes of later ones, by another way than :meth:`remember`."""
    suits: ClassVar[Mapping[str, Any]] = {"name": "lenet"}
    """A network of the zoo, with its parameters, that the attack is made for: on it the contract tests hold it to its word."""
    Config: ClassVar[type[AttackConfig]] = AttackConfig

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for method, word in {"run": "at_once", "remember": "remembers"}.items():
            if method in vars(cls) and word not in vars(cls):
                raise TypeError(
                    f"attack {cls.__name__} has a method '{method}' of its own, so it must say '{word} = True' (or False)"
                )

    def __init__(self, **parameters: Any) -> None:
        self.config = read_parameters(self.Config, parameters, f"attack '{self.name}'")
        if self.config.labels == JOINT and not self.joint_labels:
            raise ParameterError(
                f"attack '{self.name}'",
                "labels",
                f"'{JOINT}' optimises labels together with the images, which '{self.name}' cannot; name a label rule instead",
            )

    @property
    def takes_rounds(self) -> bool:
        """Whether a round's observations are better handed over at once than one by one, so that each result is kept."""
        return self.at_once

    @property
    def sequential(self) -> bool:
        """Whether one process must take all updates in their order; otherwise rounds can be attacked side by side."""
        return self.in_order or self.remembers

    def remember(self, observations: Sequence[Observation]) -> None:  # noqa: B027 (a hook, and most attacks need none)
        """See a round's observations, whether or not the attack strikes in it, once it is over; by default nothing is kept.

        After an interrupt the rounds before are shown again, in order.
        """

    def refuses(self, defenses: Sequence[str]) -> str | None:
        """Return why it cannot attack clients with these defenses, by name, or ``None`` where it can; it can by default."""
        return None

    def goes_through(self, defense: str) -> bool:
        """Return whether it is an adaptive attacker of the defense of that name: it knows what the defense does, and undoes it.

        A sweep says that a defense blocks only where such an attack has failed. By default whoever requires to know the
        defenses goes through each; narrow it where that is not so.
        """
        return Knowledge.DEFENSE in self.requires

    def foresee(
        self, model: nn.Module, input: InputSpec, local: LocalTraining, kind: UpdateKind, defenses: Sequence[str]
    ) -> str | None:
        """Return what it would do, in words, where that depends on the case; ``None`` by default.

        Parameters
        ----------
        model : Module
            Of the clients' architecture.
        input : InputSpec
            What it takes.
        local : LocalTraining
            How the client trains.
        kind : {"gradient", "weights"}
            What it sends.
        defenses : sequence of str
            Which the attacker knows to be on.
        """
        return None

    @classmethod
    def needs(cls, kind: UpdateKind) -> frozenset[Knowledge]:
        """Return the knowledge that the attack needs to read an update of ``kind``."""
        return cls.requires | (frozenset({Knowledge.LOCAL_TRAINING}) if kind == "weights" else frozenset())

    def __call__(
        self,
        observations: Sequence[Observation],
        model: nn.Module,
        *,
        seed: int | Seed = 0,
        device: str | torch.device = "cpu",
        progress: Callable[[Progress], None] | None = None,
    ) -> list[Reconstruction]:
        """Check the observations, run within the budget, and return one result for each.

        Parameters
        ----------
        observations : sequence of Observation
            All of one round.
        model : Module
            Of the architecture that the clients train; its own weights are not used.
        seed : int or Seed
            All draws derive from it.
        device : str or torch.device
            Where to compute.
        progress : callable, optional
            Told how far the attack is, at every iteration.

        Returns
        -------
        list of Reconstruction
            In the order of ``observations``; a named failure is a result with ``images=None`` and ``error``.

        Raises
        ------
        AttackError
            If an observation lacks knowledge that the attack requires, is of a kind that it cannot read, or does not fit
            the model.
        """
        for observation in observations:
            self._check(observation, model)
        observations = [observation.completed(model) for observation in observations]
        root = seed if isinstance(seed, Seed) else Seed(seed)
        budget = Budget(self.config.budget_seconds, self.config.iterations, progress)
        with twice_differentiable(model):
            results = self.run(observations, model, rng=root, device=torch.device(device), budget=budget)
        named = zip(results, observations, strict=True)
        return [replace(r, round=o.round, client=o.client, attack=self.name) for r, o in named]

    def run(
        self, observations: Sequence[Observation], model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> list[Reconstruction]:
        """Rebuild the batches behind ``observations``; the default takes them one by one."""
        results = []
        for observation in observations:
            budget.begin(self.name, observation)
            wall, cpu = time.perf_counter(), process_time()
            try:
                seed = rng.derive(self.name, observation.round, observation.client)
                result = self.reconstruct(observation, model, rng=seed, device=device, budget=budget)
            except (AttackError, LinAlgError, torch.OutOfMemoryError) as error:
                result = Reconstruction(None, stop_reason="failed", error=str(error))
            results.append(replace(result, seconds=time.perf_counter() - wall, cpu_seconds=process_time() - cpu))
        return results

    @abstractmethod
    def reconstruct(
        self, observation: Observation, model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> Reconstruction:
        """Rebuild the batch behind one observation."""

    def _check(self, observation: Observation, model: nn.Module) -> None:
        if observation.kind not in self.kinds:
            raise AttackError(f"'{self.name}' reads updates of kind {sorted(self.kinds)}, not '{observation.kind}'")
        missing = self.needs(observation.kind) - observation.granted
        if missing:
            raise AttackError(f"'{self.name}' needs {', '.join(sorted(missing))}, which the observation does not grant")
        sent = _shapes(observation.parameters.items())
        if differing := _difference(_shapes(observation.update.items()), sent):
            raise AttackError(f"the update is not of the parameters sent: {differing}")
        own = {name: value for name, value in model.named_parameters() if name not in observation.kept}
        known = {name: value for name, value in observation.buffers.items() if name in own} | observation.parameters
        if differing := _difference(_shapes(own.items()), _shapes(known.items())):
            raise AttackError(f"the model is not of the parameters sent: {differing}")
        if reason := self.refuses_part(
            [name for name, _ in model.named_parameters() if name not in sent], observation.kept_known
        ):
            raise AttackError(reason)

    def refuses_part(self, others: Sequence[str], known: bool) -> str | None:
        """Return why it cannot read an update without those parameters, or ``None`` where it can.

        Parameters
        ----------
        others : sequence of str
            Parameters of which no update travels.
        known : bool
            Whether the attacker knows their values.
        """
        if not others or self.reads == "alone":
            return None
        listed = ", ".join(f"'{name}'" for name in others[:2]) + (f" and {len(others) - 2} more" if len(others) > 2 else "")
        if self.reads == "all":
            return (
                f"'{self.name}' reads the update of every parameter, and that of {listed} does not travel; use 'features', or an "
                "attack by gradient matching"
            )
        if not known:
            return f"'{self.name}' runs the whole network, of which {listed} is not known; set threat.frozen_known = true"
        return None


def _shapes(named: Iterable[tuple[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in named}


def _difference(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]) -> str:
    """Say which names or shapes differ, the first three; empty if none."""
    names = [name for name in {**expected, **found} if found.get(name) != expected.get(name)]
    return "; ".join(f"'{name}' is {found.get(name, 'missing')} instead of {expected.get(name, 'absent')}" for name in names[:3])


attacks: Registry[type[Attack]] = Registry("attack", "fedleak.attacks", Attack)
JOINT: Final = "joint"
"""Named in place of a rule: the attack optimises soft labels together with the images (as in arXiv 1906.08935)."""
