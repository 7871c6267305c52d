"""The attacks of an experiment: which strike in which round, and on whom; run one after the other, and graded by the clients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from flwr.serverapp import Grid
from torch import nn

from fedleak.attacks.base import Attack, Progress, Reconstruction, attacks
from fedleak.events import Event, Listener, silent
from fedleak.observation import Observation
from fedleak.positions.books import Books
from fedleak.positions.grading import Grader, failed_row
from fedleak.printable import one_line
from fedleak.runs.folder import Row
from fedleak.sandbox.strike import attackers_seed, groups, show, strike
from fedleak.scenario.schema import AttackSpec
from fedleak.wire.received import Failure

_LONGEST = 300  # characters of what an attack says went wrong


class Campaign:
    """Runs the attacks that are due in a round on its observations; whatever goes wrong becomes a row, never an exception.

    Parameters
    ----------
    specs : sequence of AttackSpec
        Which attacks, at which rounds, on how many clients.
    model : Module
        Of the architecture that the clients train.
    grader : Grader
        Has the results graded.
    books : Books
        Take the rows.
    seed : int
        The experiment's; the attacker's draws derive from it.
    limit : float, optional
        Seconds by the clock that an attack may take for each update; see ``server.attack_limit``.
    device : str
        Where attacks compute.
    listener : Listener
        Told what happens.

    Attributes
    ----------
    attacks : list of (AttackSpec, Attack)
        In the order of ``specs``.
    """

    def __init__(
        self,
        specs: Sequence[AttackSpec],
        model: nn.Module,
        grader: Grader,
        books: Books,
        *,
        seed: int,
        limit: float | None = None,
        device: str = "cpu",
        listener: Listener = silent,
    ) -> None:
        self.attacks = [(spec, attacks.get(spec.name)(**spec.parameters)) for spec in specs]
        self._model = model
        self._grader = grader
        self._books = books
        self._seed = attackers_seed(seed)
        self._limit = limit
        self._threads = torch.get_num_threads()
        self._device = device
        self._listener = listener

    @property
    def remembers(self) -> bool:
        """Whether an attack keeps what it saw, and so must be shown every round."""
        return any(attack.remembers for _, attack in self.attacks)

    def due(self, server_round: int) -> bool:
        """Say whether any attack strikes in a round."""
        return any(spec.strikes(server_round) for spec, _ in self.attacks)

    def wanted(self, server_round: int) -> int | None:
        """Return how many of a round's observations the attacks look at, always the first; ``None`` for all."""
        if self.remembers:
            return None
        most = [spec.clients for spec, _ in self.attacks if spec.strikes(server_round)]
        return None if "all" in most else max((int(clients) for clients in most), default=0)

    def attack(self, server_round: int, observations: Sequence[Observation], grid: Grid) -> None:
        """Run every attack that is due, have its results graded, and show the round to those that remember."""
        for spec, attack in self.attacks:
            if not spec.strikes(server_round):
                continue
            struck = groups(spec, attack, observations)
            for number, group in enumerate(struck, start=1):
                self._tell("attack", attack=spec.result_name, round=server_round, number=number, total=len(struck))
                results = strike(
                    attack,
                    group,
                    self._model,
                    seed=self._seed,
                    device=self._device,
                    threads=self._threads,
                    limit=self._limit,
                    progress=self._progress,
                )
                for observation, result in zip(group, results, strict=True):
                    self.grade(spec, attack, observation, result, grid, self._books.keep)
        self.remember(server_round, observations)

    def grade(
        self,
        spec: AttackSpec,
        attack: Attack,
        observation: Observation,
        result: Reconstruction,
        grid: Grid,
        keep: Callable[[list[Row]], None],
    ) -> None:
        """Have the clients grade what ``attack`` made of ``observation``, and have the rows kept before it is told."""
        named = replace(result, attack=spec.result_name)
        rows = self._grader.grade(observation, named, self._model, grid, models_steps=attack.models_local_steps)
        keep(rows)
        self._tell("graded", attack=spec.result_name, round=observation.round, client=observation.client, rows=rows)

    def remember(self, server_round: int, observations: Sequence[Observation]) -> None:
        """Show a round that is over to the attacks that keep what they saw."""
        for spec, attack in self.attacks:
            if (error := show(attack, observations, self._threads, self._limit)) is not None:
                self.report(spec, server_round, error, self._books.keep_problem)

    def report(self, spec: AttackSpec, server_round: int, error: str, keep: Callable[[Row], None]) -> None:
        """Have it kept, and tell, that an attack broke off when it was shown a round."""
        row: Row = {"round": server_round, "client": None, "attack": spec.result_name, "error": one_line(error, _LONGEST)}
        if not self._books.holds_problem(row):
            keep(row)
        self._tell("problem", **row)

    def record_failures(self, server_round: int, failures: Sequence[Failure]) -> None:
        """Keep a row for every client that gave an attack of this round nothing to attack."""
        self._books.keep(self.failed(server_round, failures))

    def failed(self, server_round: int, failures: Sequence[Failure]) -> list[Row]:
        """Return a row for every attack of this round and client that gave it nothing to attack."""
        return [
            failed_row(
                self._grader.terms,
                spec.result_name,
                server_round,
                failure.client,
                f"invalid reply: {failure.reason}",
                ["invalid-reply"],
            )
            for spec, _ in self.attacks
            if spec.strikes(server_round)
            for failure in failures
        ]

    def _progress(self, progress: Progress) -> None:
        self._tell("progress", **vars(progress))

    def _tell(self, kind: str, **facts: Any) -> None:
        self._listener(Event(kind, facts))
