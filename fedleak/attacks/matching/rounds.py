"""A round's observations and restarts in few tensor programs: which go together, in which chunks, and whose result is whose."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from fedleak.attacks.base import Budget, Reconstruction
from fedleak.attacks.matching.descent import Descent
from fedleak.attacks.victims.base import Victim
from fedleak.errors import AttackError
from fedleak.observation import Observation
from fedleak.seeding import Seed

if TYPE_CHECKING:
    from fedleak.attacks.matching.base import MatchingAttack
    from fedleak.attacks.matching.unknowns import Unknowns

LOST = 10
"""Non-finite starts that are drawn anew before an attack gives up."""
_MEBIBYTE = 2**20
_DOUBLED = 2  # what differentiating the gradient adds to its own graph, about


@dataclass
class Case:
    """One observation at work: what it is matched with, and what its restarts have found."""

    index: int
    observation: Observation
    victim: Victim
    labels: tuple[int, ...] | None
    seed: Seed
    budget: Budget
    lost: int = 0
    found: dict[int, tuple[Descent, Unknowns]] = field(default_factory=dict)
    iterations: int = 0
    error: str | None = None


@dataclass
class Try:
    """One start of one case.

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
    needless : callable
        Whether an earlier restart of the case has converged meanwhile.
    """

    victim: Victim
    unknowns: Unknowns
    seed: Seed
    budget: Budget
    course: Descent = field(default_factory=Descent)
    earlier: list[Try] = field(default_factory=list)

    def needless(self) -> bool:
        """Whether an earlier restart has converged."""
        return any(other.course.stop_reason == "converged" for other in self.earlier)


class Round:
    """One attack on the observations of one round.

    Parameters
    ----------
    attack : MatchingAttack
        Whose starts can be taken together.
    alone : callable
        Attacks one observation by itself.
    """

    def __init__(
        self,
        attack: MatchingAttack,
        alone: Callable[[Observation], Reconstruction],
        model: nn.Module,
        rng: Seed,
        device: torch.device,
        budget: Budget,
    ) -> None:
        self._attack, self._alone, self._model = attack, alone, model
        self._rng, self._device, self._budget = rng, device, budget

    def run(self, observations: Sequence[Observation]) -> list[Reconstruction]:
        """Return one result for each observation, in their order."""
        results: dict[int, Reconstruction] = {}
        for group in self._groups(observations, results):
            if len(group) * self._attack.config.restarts == 1 or not self._attack.gains(group[0].victim, len(group)):
                found = None
            else:
                found = self._strike(group)
            for case in group:
                results[case.index] = found[case.index] if found else self._alone(case.observation)
        return [results[index] for index in range(len(observations))]

    def _groups(self, observations: Sequence[Observation], results: dict[int, Reconstruction]) -> list[list[Case]]:
        """Sort the observations into groups of one network, batch size and kind of labels; book what cannot be attacked."""
        groups: list[list[Case]] = []
        for index, observation in enumerate(observations):
            budget = replace(self._budget)
            budget.begin(self._attack.name, observation)
            wall = time.perf_counter()
            try:
                victim = self._attack.defended(observation, self._model, self._device)
                labels = self._attack.restore_labels(observation, self._model)
            except (AttackError, LinAlgError, torch.OutOfMemoryError) as error:
                failed = Reconstruction(None, stop_reason="failed", error=str(error))
                results[index] = replace(failed, seconds=time.perf_counter() - wall, cpu_seconds=budget.spent)
                continue
            seed = self._rng.derive(self._attack.name, observation.round, observation.client)
            case = Case(index, observation, victim, labels, seed, budget)
            for group in groups:
                if _alike(group[0], case):
                    group.append(case)
                    break
            else:
                groups.append([case])
        return groups

    def _strike(self, group: list[Case]) -> dict[int, Reconstruction] | None:
        """Attack the cases of a group together; ``None`` if their network or the attack cannot be vectorised."""
        wall = time.perf_counter()
        clock = replace(self._budget, seconds=None if self._budget.seconds is None else self._budget.seconds * len(group))
        clock.begin(self._attack.name, group[0].observation)
        restarts = range(self._attack.config.restarts)
        waves = [[restart] for restart in restarts] if self._attack.spares_restarts else [list(restarts)]
        try:
            for wave in waves:
                pending = [(case, restart) for case in group for restart in wave if not _converged(case)]
                while pending and not (clock.exhausted and all(case.found for case in group)):
                    pending = self._wave(pending, clock)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            return None
        results = {case.index: self._result(case, clock.exhausted) for case in group}
        seconds, cpu = (time.perf_counter() - wall) / len(group), clock.spent / len(group)
        return {index: replace(result, seconds=seconds, cpu_seconds=cpu) for index, result in results.items()}

    def _wave(self, pending: list[tuple[Case, int]], clock: Budget) -> list[tuple[Case, int]]:
        """Take the starts in chunks; return those that became non-finite and are to be drawn anew."""
        again: list[tuple[Case, int]] = []
        size, halved, at = self._chunk(pending[0][0]), False, 0
        while at < len(pending):
            chunk = pending[at : at + size]
            share = len(chunk) / (len(pending) - at)
            part = replace(clock, seconds=None if clock.seconds is None else clock.spent + share * (clock.seconds - clock.spent))
            try:
                again += self._take(chunk, part)
            except RuntimeError as error:  # OutOfMemoryError is one
                if not _out_of_memory(error):
                    raise
                if not halved and len(chunk) > 1:
                    size, halved = max(1, len(chunk) // 2), True
                    continue
                for case, _ in chunk:
                    case.error = (
                        f"out of memory with {len(chunk)} starts together; set 'together' below {max(2, len(chunk))}, lower "
                        f"'memory_mb' ({self._attack.config.memory_mb}), or attack on a machine with more memory"
                    )
            at += len(chunk)
        return again

    def _take(self, chunk: list[tuple[Case, int]], clock: Budget) -> list[tuple[Case, int]]:
        tries: list[Try] = []
        for case, restart in chunk:
            seed = case.seed.derive("restart", restart, case.lost)
            unknowns = self._attack._unknowns(case.observation, case.labels, seed, self._device)
            earlier = [one for one, (other, number) in zip(tries, chunk, strict=False) if other is case and number < restart]
            tries.append(Try(case.victim, unknowns, seed, case.budget, earlier=earlier))
        again = []
        courses = self._attack.minimise_together(tries, clock)
        for (case, restart), one, course in zip(chunk, tries, courses, strict=True):
            case.iterations += course.iterations
            if course.best:
                case.found[restart] = course, one.unknowns
            if course.stop_reason == "non-finite" and not clock.exhausted:
                case.lost += 1
                if case.lost <= LOST:
                    again.append((case, restart))
        return again

    def _chunk(self, case: Case) -> int:
        """Return how many starts fit the memory bound, measured on the gradient of one."""
        config = self._attack.config
        if config.together is not None:
            return config.together
        unknowns = self._attack._unknowns(case.observation, case.labels, case.seed.derive("size"), self._device)
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
        return self._attack._result(*kept, case.iterations, exhausted, case.lost)


def _alike(a: Case, b: Case) -> bool:
    same = a.observation.batch_size == b.observation.batch_size and a.observation.input == b.observation.input
    return same and (a.labels is None) == (b.labels is None) and a.victim.shares_network(b.victim)


def _converged(case: Case) -> bool:
    return any(course.stop_reason == "converged" for course, _ in case.found.values())


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
