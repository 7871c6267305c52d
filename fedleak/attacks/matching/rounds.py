"""A round's observations and restarts in few tensor programs: which go together, in which chunks, and whose result is whose."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from fedleak.attacks.base import Budget, Reconstruction
from fedleak.attacks.matching.descent import Descent, MatchingConfig
from fedleak.attacks.matching.unknowns import Unknowns
from fedleak.attacks.victims.base import Victim
from fedleak.errors import AttackError
from fedleak.observation import Observation
from fedleak.seeding import Seed

LOST = 10
"""Non-finite starts that are drawn anew before an attack gives up."""
_MEBIBYTE = 2**20
_DOUBLED = 2  # what differentiating the gradient adds to its own graph, about


@dataclass
class Try:
    """One start of one update.

    Attributes
    ----------
    victim : Victim
        Network and gradient to match.
    unknowns : Unknowns
        Where it starts.
    seed : Seed
        Of all other draws.
    budget : Budget
        To be told each iteration.
    earlier : list of Try
        Restarts of the same update that come first.
    stuck : float, optional
        As for :class:`~fedleak.attacks.matching.descent.Start`.
    """

    victim: Victim
    unknowns: Unknowns
    seed: Seed
    budget: Budget
    course: Descent = field(default_factory=Descent)
    earlier: list[Try] = field(default_factory=list)
    stuck: float | None = None

    def needless(self) -> bool:
        """Whether an earlier restart has converged."""
        return any(other.course.stop_reason == "converged" for other in self.earlier)


class Matching(Protocol):
    """What a round asks of an attack by gradient matching."""

    name: ClassVar[str]
    spares_restarts: ClassVar[bool]
    models_local_steps: ClassVar[bool]
    config: MatchingConfig

    @property
    def many(self) -> bool:
        """Whether starts can be taken together."""

    def defended(self, observation: Observation, model: nn.Module, device: torch.device) -> Victim:
        """Return the network and the gradient to match."""

    def restore_labels(self, observation: Observation, model: nn.Module) -> tuple[int, ...] | None:
        """Return the labels, or ``None`` to optimise them jointly."""

    def unknowns(self, observation: Observation, labels: tuple[int, ...] | None, seed: Seed, device: torch.device) -> Unknowns:
        """Return the start that derives from ``seed``."""

    def optimiser(self, variables: list[Tensor]) -> torch.optim.Optimizer:
        """Return the optimiser over the unknowns."""

    def minimise(self, tries: Sequence[Try], clock: Budget) -> list[Descent]:
        """Descend from all starts."""

    def rebuilt(self, victim: Victim, unknowns: Unknowns, best: Sequence[Tensor]) -> tuple[Tensor, tuple[int, ...]]:
        """Return the images and the labels at the point that is kept."""


@dataclass
class Case:
    """One observation at work: what it is matched with, and what its restarts have found."""

    observation: Observation
    victim: Victim
    labels: tuple[int, ...] | None
    seed: Seed
    budget: Budget
    index: int = 0
    prepared: float = 0.0  # CPU seconds
    lost: int = 0
    found: dict[int, tuple[Descent, Unknowns]] = field(default_factory=dict)
    iterations: int = 0
    error: str | None = None

    @property
    def converged(self) -> bool:
        """Whether one of its starts has."""
        return any(course.stop_reason == "converged" for course, _ in self.found.values())

    def like(self, other: Case) -> bool:
        """Whether starts of both can be rows of one program."""
        a, b = self.observation, other.observation
        same = a.batch_size == b.batch_size and a.input == b.input and (self.labels is None) == (other.labels is None)
        return same and self.victim.shares_network(other.victim)


class Round:
    """One attack on the observations of one round.

    Parameters
    ----------
    attack : Matching
        Which.
    model : Module
        Of the clients' architecture.
    device : torch.device
        Where to compute.
    """

    def __init__(self, attack: Matching, model: nn.Module, device: torch.device) -> None:
        self._attack, self._model, self._device = attack, model, device

    def run(self, observations: Sequence[Observation], rng: Seed, budget: Budget) -> list[Reconstruction]:
        """Return one result for each observation, in their order; what fails by name is a result that says so."""
        results: dict[int, Reconstruction] = {}
        for group in self._groups(observations, rng, budget, results):
            wall, prepared = time.perf_counter(), sum(case.prepared for case in group)
            clock = replace(budget, seconds=None if budget.seconds is None else budget.seconds * len(group) - prepared)
            for case in group:
                case.budget.seconds = clock.seconds
                case.budget.begin(self._attack.name, case.observation)
            clock.begin(self._attack.name, group[0].observation)
            self._strike(group, clock)
            elapsed, cpu = (time.perf_counter() - wall) / len(group), (clock.spent + prepared) / len(group)
            for case in group:
                results[case.index] = replace(self._result(case, clock.exhausted), seconds=elapsed, cpu_seconds=cpu)
        return [results[index] for index in range(len(observations))]

    def one(self, observation: Observation, seed: Seed, budget: Budget) -> Reconstruction:
        """Return the result of one observation, within a budget that has begun.

        Raises
        ------
        AttackError
            If it cannot be attacked.
        """
        case = self._case(observation, seed, budget)
        self._strike([case], budget)
        if case.error is not None and not case.found:
            raise AttackError(case.error)
        return self._result(case, budget.exhausted)

    def _case(self, observation: Observation, seed: Seed, budget: Budget) -> Case:
        victim = self._attack.defended(observation, self._model, self._device)
        return Case(observation, victim, self._attack.restore_labels(observation, self._model), seed, budget)

    def _groups(
        self, observations: Sequence[Observation], rng: Seed, budget: Budget, results: dict[int, Reconstruction]
    ) -> list[list[Case]]:
        """Sort the observations into groups of one network, batch size and kind of labels; book what cannot be attacked."""
        groups: list[list[Case]] = []
        for index, observation in enumerate(observations):
            own = replace(budget)
            own.begin(self._attack.name, observation)
            wall = time.perf_counter()
            try:
                case = self._case(observation, rng.derive(self._attack.name, observation.round, observation.client), own)
            except (AttackError, LinAlgError, torch.OutOfMemoryError) as error:
                failed = Reconstruction(None, stop_reason="failed", error=str(error))
                results[index] = replace(failed, seconds=time.perf_counter() - wall, cpu_seconds=own.spent)
                continue
            case.index, case.prepared = index, own.spent
            group = next((group for group in groups if group[0].like(case)), None)
            if group is None:
                groups.append([case])
            else:
                group.append(case)
        return groups

    def _strike(self, group: list[Case], clock: Budget) -> None:
        """Attack the cases of a group, together where their network and the attack can be vectorised."""
        many = self._attack.many and not group[0].victim.alone
        restarts = range(self._attack.config.restarts)
        waves = [list(restarts)] if many and not self._attack.spares_restarts else [[restart] for restart in restarts]
        size = None if many else 1
        for number, wave in enumerate(waves, start=1):
            pending = [(case, restart) for case in group for restart in wave if not self._settled(case)]
            if pending and size is None:
                size = self._fitting(pending)
            while pending and not (clock.exhausted and all(case.found for case in group)):
                pending, size = self._wave(pending, clock, size or 1, len(waves) - number)

    def _settled(self, case: Case) -> bool:
        """Return whether no further restart of a case is of use."""
        level = self._stuck(case)
        # What keeps such a loss up is the reading as one gradient, and no other start would bring it down.
        stuck = level is not None and any(c.stop_reason == "flat" and c.loss > level for c, _ in case.found.values())
        return stuck or case.converged or case.error is not None

    def _stuck(self, case: Case) -> float | None:
        """Return the loss above which a start of this case can be stuck: where several local steps are read as one gradient."""
        local = case.observation.local
        several = case.observation.kind == "weights" and local is not None and local.steps > 1
        return self._attack.config.stuck if several and not self._attack.models_local_steps else None

    def _wave(
        self, pending: list[tuple[Case, int]], clock: Budget, size: int, waves_left: int
    ) -> tuple[list[tuple[Case, int]], int]:
        """Take the starts in chunks; return those that became non-finite and are to be drawn anew, and the size of chunks."""
        again: list[tuple[Case, int]] = []
        halved, at = False, 0
        while at < len(pending):
            chunk = pending[at : at + size]
            share = len(chunk) / (len(pending) - at)
            part = replace(clock, seconds=None if clock.seconds is None else clock.spent + share * (clock.seconds - clock.spent))
            further = (len(pending) - at) / len(chunk) - 1 + waves_left * len(pending) / len(chunk)
            try:
                again += self._take(chunk, part, further)
            # Whatever a network of one's own raises where it is given many batches at once, it may not where it is given one.
            except Exception as error:
                scarce = _out_of_memory(error)
                if len(chunk) == 1 and not scarce and not isinstance(error, AttackError | LinAlgError):
                    raise
                if len(chunk) > 1 and not (scarce and halved):
                    size, halved = (max(1, len(chunk) // 2), True) if scarce else (1, halved)
                    continue
                for case, _ in chunk:
                    case.error = self._too_large(len(chunk)) if scarce else str(error)
            at += len(chunk)
        return again, size

    def _take(self, chunk: list[tuple[Case, int]], clock: Budget, further: float) -> list[tuple[Case, int]]:
        tries: list[Try] = []
        for case, restart in chunk:
            seed = case.seed.derive("restart", restart, case.lost)
            unknowns = self._attack.unknowns(case.observation, case.labels, seed, self._device)
            unknowns.others += case.victim.start(seed.derive("others").generator())
            case.budget.start(further)
            earlier = [one for one, (other, number) in zip(tries, chunk, strict=False) if other is case and number < restart]
            tries.append(Try(case.victim, unknowns, seed, case.budget, earlier=earlier, stuck=self._stuck(case)))
        again = []
        courses = self._attack.minimise(tries, clock)
        for (case, restart), one, course in zip(chunk, tries, courses, strict=True):
            case.iterations += course.iterations
            if course.best:
                case.found[restart] = course, one.unknowns
            if course.stop_reason == "non-finite" and not clock.exhausted:
                case.lost += 1
                if case.lost <= LOST:
                    again.append((case, restart))
        return again

    def _fitting(self, pending: list[tuple[Case, int]]) -> int:
        """Return how many starts fit the memory bound, measured on the gradient of one."""
        config, case = self._attack.config, pending[0][0]
        if config.together is not None or len(pending) == 1:
            return config.together or 1
        unknowns = self._attack.unknowns(case.observation, case.labels, case.seed.derive("size"), self._device)
        held: dict[int, int] = {}

        def pack(value: Tensor) -> Tensor:
            held[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            pixels = case.victim.input.normalize(unknowns.pixels)
            case.victim.gradient(pixels, unknowns.targets(case.victim.input.num_classes))
        optimiser = self._attack.optimiser(unknowns.variables).param_groups[0]
        variables = sum(value.nbytes for value in unknowns.variables)
        each = _DOUBLED * sum(held.values()) + variables * (10 + 4 * optimiser.get("history_size", 0))
        fitting: int = config.memory_mb * _MEBIBYTE // each
        return max(1, fitting)

    def _too_large(self, starts: int) -> str:
        bound = self._attack.config.memory_mb
        less = f"set 'together' below {starts}, lower 'memory_mb' ({bound}), or attack" if starts > 1 else "attack"
        return f"out of memory with {starts} starts together; {less} on a machine with more memory"

    def _result(self, case: Case, exhausted: bool) -> Reconstruction:
        """Return the start of lowest loss, up to the first that converged."""
        kept: tuple[Descent, Unknowns] | None = None
        for _, (course, unknowns) in sorted(case.found.items(), key=lambda item: item[0]):
            if kept is None or course.loss < kept[0].loss:
                kept = course, unknowns
            if kept[0].stop_reason == "converged":
                break
        if kept is None:
            reason = case.error or "every start became non-finite"
            return Reconstruction(None, iterations=case.iterations, stop_reason="failed", error=reason)
        course, unknowns = kept
        images, labels = self._attack.rebuilt(case.victim, unknowns, course.best)
        return Reconstruction(
            images,
            labels=labels,
            loss=course.loss,
            initial_loss=course.initial,
            iterations=case.iterations,
            stop_reason="budget" if exhausted and course.stop_reason != "converged" else course.stop_reason,
            flags=("non-finite-restart",) if case.lost else (),
        )


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
