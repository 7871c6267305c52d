"""The attacks of an experiment: which strike in which round, and on whom; run one after the other, and graded by the clients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from flwr.serverapp import Grid
from torch import nn

from fedleak.attacks.base import Attack, Progress, Reconstruction, attacks
from fedleak.events import Event, Listener, silent
from fedleak.observation import Observation
from fedleak.positions.books import Books
from fedleak.positions.grading import Grader, failed_row
from fedleak.printable import one_line
from fedleak.runs.folder import Row
from fedleak.sandbox.attackers import Attackers
from fedleak.sandbox.strike import groups
from fedleak.scenario.schema import AttackSpec
from fedleak.wire.received import NOT_ATTACKED, Failure

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
    attackers : Attackers
        Run them.
    recall : callable
        Returns the observations of earlier rounds, to show them again to attackers that forgot them.
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
        attackers: Attackers,
        *,
        recall: Callable[[], Iterable[Observation]] = tuple,
        listener: Listener = silent,
    ) -> None:
        self.attacks = [(spec, attacks.get(spec.name)(**spec.parameters)) for spec in specs]
        self._model = model
        self._grader = grader
        self._books = books
        self._attackers = attackers
        self._recall = recall
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
        try:
            for place, (spec, attack) in enumerate(self.attacks):
                if spec.strikes(server_round):
                    self._strike(place, spec, attack, server_round, observations, grid)
        finally:
            self.reveal()
        self.remember(server_round, observations)

    def _strike(
        self,
        place: int,
        spec: AttackSpec,
        attack: Attack,
        server_round: int,
        observations: Sequence[Observation],
        grid: Grid,
    ) -> None:
        struck = groups(spec, attack, observations)
        for number, group in enumerate(struck, start=1):
            self._tell("attack", attack=spec.result_name, round=server_round, number=number, total=len(struck))
            if self._attackers.forgot:
                self._remind(server_round)
            results = self._attackers.strike(place, group, self._progress)
            for observation, result in zip(group, results, strict=True):
                self.grade(spec, attack, observation, result, grid, self._books.keep)

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
        for place, (spec, attack) in enumerate(self.attacks):
            if attack.remembers and (error := self._attackers.show(place, observations)) is not None:
                self.report(spec, server_round, error, self._books.keep_problem)

    def _remind(self, server_round: int) -> None:
        """Show the rounds before this one again: the process that had seen them is gone."""
        self._attackers.forgot = False
        for observation in self._recall():
            if observation.round < server_round:
                self.remember(observation.round, [observation])

    def reveal(self) -> None:
        """Have the true images written that clients revealed since: no attack of their round is at work any more."""
        self._grader.reveal()

    def close(self) -> None:
        """End what runs the attacks."""
        self._attackers.close()

    def report(self, spec: AttackSpec, server_round: int, error: str, keep: Callable[[Row], None]) -> None:
        """Have it kept, and tell, that an attack broke off when it was shown a round."""
        row: Row = {"round": server_round, "client": None, "attack": spec.result_name, "error": one_line(error, _LONGEST)}
        if not self._books.holds_problem(row):
            keep(row)
        self._tell("problem", **row)

    def note_undefended(self, server_round: int, clients: Iterable[int]) -> None:
        """Have the rows of these clients' updates say that no defense changed them; the attackers are not told."""
        self._grader.note_undefended(server_round, clients)

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
                failure.reason if failure.reason.startswith(NOT_ATTACKED) else f"invalid reply: {failure.reason}",
                ["invalid-reply"],
                self._grader.modality,
            )
            for spec, _ in self.attacks
            if spec.strikes(server_round)
            for failure in failures
        ]

    def _progress(self, progress: Progress) -> None:
        self._tell("progress", **vars(progress))

    def _tell(self, kind: str, **facts: Any) -> None:
        self._listener(Event(kind, facts))
