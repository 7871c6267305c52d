"""The attack side of an app of one's own: each fault of a part of it is a row, and costs no more than that part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flwr.serverapp import Grid
from torch import nn

from fedleak.apps.guard import described
from fedleak.attacks.base import Progress, Reconstruction
from fedleak.errors import FedleakError
from fedleak.events import Event, Listener
from fedleak.observation import Observation, Tensors
from fedleak.positions.books import Books
from fedleak.positions.grading import Grader, failed_row
from fedleak.positions.inference import Inference
from fedleak.positions.recorder import Recorder
from fedleak.runs.folder import Row, RunFolder
from fedleak.sandbox.attackers import Attackers
from fedleak.sandbox.strike import failures
from fedleak.wire.received import Reply

Fault = Callable[[str, str], None]
"""Told which step failed, and how."""


class CarefulRecorder(Recorder):
    """Leaves out the reply that cannot be recorded, and records the others.

    Attributes
    ----------
    fault : callable
        Told of it.
    """

    fault: Fault

    def _labels(self, server_round: int, good: Mapping[int, Reply], grid: Grid) -> dict[int, tuple[int, ...]]:
        try:
            return super()._labels(server_round, good, grid)
        # Whatever it is, an attack can do without the labels, or says that it cannot.
        except BaseException as error:  # noqa: BLE001
            self.fault("asking for labels", described(error))
            return {}

    def keep(
        self, server_round: int, client: int, reply: Reply, sent: Tensors, labels: Mapping[int, tuple[int, ...]]
    ) -> Observation | None:
        """Return the observation of one reply, saved; ``None`` if that fails."""
        try:
            return super().keep(server_round, client, reply, sent, labels)
        # A full disk, a shape that nobody foresaw: the other clients' updates are attacked all the same.
        except BaseException as error:  # noqa: BLE001
            self.fault(f"recording of client {client}", described(error))
            return None


class CarefulGrader(Grader):
    """Makes a failed row of what cannot be graded, and flags grades of another number of images than was told."""

    def grade(
        self, observation: Observation, result: Reconstruction, model: nn.Module, grid: Grid, *, models_steps: bool = False
    ) -> list[Row]:
        """Return one row for each private example, or one that says why there is none."""
        try:
            rows = super().grade(observation, result, model, grid, models_steps=models_steps)
        # A network that nobody foresaw, or an answer: the attacks that follow are graded all the same.
        except BaseException as error:  # noqa: BLE001
            said, at = f"the result could not be graded: {described(error)}", (observation.round, observation.client)
            return [failed_row(self.terms, result.attack, *at, said, list(result.flags), self.modality)]
        local = observation.local
        graded = [row for row in rows if row["example"] is not None]
        if local is not None and not observation.clients and graded and len(graded) != local.num_examples:
            for row in graded:
                row["flags"] = [*row["flags"], "other-number-of-images"]
        return rows


class CarefulInference(Inference):
    """Reads off updates what it can, and says where it cannot.

    Attributes
    ----------
    fault : callable
        Told of it.
    """

    fault: Fault

    def look(self, server_round: int, observations: Sequence[Observation], grid: Grid) -> None:
        """Read a round's observations."""
        try:
            super().look(server_round, observations, grid)
        # A full disk, or an answer that nobody foresaw.
        except BaseException as error:  # noqa: BLE001
            self.fault("reading what updates tell beside images", described(error))


class CarefulBooks(Books):
    """Holds the rows that cannot be written until they can.

    Parameters
    ----------
    folder : RunFolder
        Takes them.
    fault : callable
        Told that rows could not be written.
    """

    def __init__(self, folder: RunFolder, fault: Fault) -> None:
        super().__init__(folder)
        self._fault = fault
        self._waiting: list[Row] = []

    def keep(self, rows: list[Row]) -> None:
        """Keep rows of reconstructions, and those that wait."""
        self._waiting += rows
        try:
            super().keep(self._waiting)
            self._waiting = []
        except (FedleakError, OSError) as error:
            self._fault("writing of results", f"{described(error)}; {len(self._waiting)} rows wait for room")
        except (TypeError, ValueError) as error:  # a row that no JSON can hold must not keep the others waiting
            waiting, self._waiting = self._waiting, []
            self._fault("writing of results", described(error))
            for row in waiting:
                self._one(row)

    def keep_problem(self, row: Row) -> None:
        """Keep a problem, or say it where it cannot be written."""
        try:
            super().keep_problem(row)
        except (FedleakError, OSError, TypeError, ValueError) as error:
            self._fault(f"attack {row.get('attack')}", f"{row.get('error')}; {described(error)}")

    def _one(self, row: Row) -> None:
        try:
            super().keep([row])
        except (FedleakError, OSError, TypeError, ValueError) as error:
            self._fault(f"row of client {row.get('client')}, attack {row.get('attack')}", described(error))


class CarefulAttackers:
    """Makes a failed result of whatever goes wrong where attacks are run, and runs none once it is told to stop.

    Parameters
    ----------
    attackers : Attackers
        Run them.
    stopped : callable
        Says whether to stop.
    """

    def __init__(self, attackers: Attackers, stopped: Callable[[], bool]) -> None:
        self._attackers, self._stopped = attackers, stopped

    @property
    def forgot(self) -> bool:
        """Whether what the attacks had been shown is lost."""
        return self._attackers.forgot

    @forgot.setter
    def forgot(self, value: bool) -> None:
        self._attackers.forgot = value

    def strike(
        self, number: int, observations: Sequence[Observation], progress: Callable[[Progress], None] | None = None
    ) -> list[Reconstruction]:
        """Attack a group of one round's observations."""
        if self._stopped():
            return failures(observations, "the app was interrupted")
        try:
            return self._attackers.strike(number, observations, progress)
        # The process that attacks may not start, the pipe to it may break, a plugin may raise what is no Exception.
        except BaseException as error:  # noqa: BLE001
            return failures(observations, described(error))

    def show(self, number: int, observations: Sequence[Observation]) -> str | None:
        """Show a round that is over to an attack that keeps what it saw."""
        if self._stopped():
            return None
        try:
            return self._attackers.show(number, observations)
        # As in a strike.
        except BaseException as error:  # noqa: BLE001
            return described(error)

    def close(self) -> None:
        """End what was started for them."""
        self._attackers.close()


def careful_listener(listener: Listener, fault: Fault) -> Listener:
    """Return a listener that a fault of the given one does not leave."""
    said: list[Any] = []

    def listen(event: Event) -> None:
        try:
            listener(event)
        # It is the user's, and may raise anything; it is told of the first time only.
        except BaseException as error:  # noqa: BLE001
            if not said:
                said.append(event.kind)
                fault("listener", described(error))

    return listen
