"""The ledger: one line in rounds.jsonl for each round of a federation, whoever runs it."""

from __future__ import annotations

import time
from typing import Protocol

from flwr.app import ArrayRecord

from fedleak.evaluation.resources import memory
from fedleak.events import Event, Listener, silent
from fedleak.positions.base import Position
from fedleak.runs.folder import Arrays, Row, RunFolder
from fedleak.wire.received import Failure


class Seen(Protocol):
    """What a ledger reads of a round: a :class:`~fedleak.positions.door.Door` has it."""

    asked: list[int]
    failures: tuple[Failure, ...]
    bytes_received: int
    position: Position


class Ledger:
    """Closes each round: its line, then the checkpoint, and then it is told.

    Parameters
    ----------
    door : Seen
        Knows who was asked, who failed, and what came in.
    folder : RunFolder, optional
        Takes the lines; without one they wait until :meth:`open`.
    listener : Listener
        Told what happens.
    """

    def __init__(self, door: Seen, folder: RunFolder | None = None, listener: Listener = silent) -> None:
        self._door = door
        self._folder = folder
        self._listener = listener
        self._waiting: list[Row] = []
        self._since = time.perf_counter()

    def open(self, folder: RunFolder) -> None:
        """Write into ``folder`` from now on, and first what waited for one."""
        self._folder = folder
        folder.append("rounds.jsonl", self._waiting)
        self._waiting = []

    def close(
        self,
        server_round: int,
        arrays: ArrayRecord,
        measured: Row,
        more: Row | None = None,
        plain: Row | None = None,
        state: Arrays | None = None,
    ) -> None:
        """Account for a finished round; 0 is the initial model.

        Parameters
        ----------
        server_round : int
            From 0.
        arrays : ArrayRecord
            The global model after it.
        measured : dict
            ``accuracy`` and ``loss`` of that model; ``None`` where they are not known.
        more : dict, optional
            What else the line holds.
        plain, state : dict, optional
            The strategy's state, for the checkpoint.
        """
        row: Row = {"round": server_round, **measured, "memory": memory()}
        if server_round:
            door, spent = self._door, self._door.position.seconds
            row |= {
                "clients": door.asked,
                "failures": [vars(failure) for failure in door.failures],
                "seconds": round(time.perf_counter() - self._since - spent, 4),
                "attack_seconds": round(spent, 4),
                "bytes_received": door.bytes_received,
            }
        row |= more or {}
        self._waiting.append(row)  # and stays there if it cannot be written
        self._since = time.perf_counter()
        if self._folder is not None:
            # In this order: what a kill in between leaves of the round is dropped when the run goes on.
            self.open(self._folder)
            model = {f"model/{name}": array.numpy() for name, array in arrays.items()}
            self._folder.save_checkpoint(server_round, model | (state or {}), plain or {})
            self._listener(Event("round-done", row))
            self._since = time.perf_counter()
