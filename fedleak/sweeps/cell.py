"""Runs one cell of a sweep, once: whoever comes second, or again after a kill, finds what is done and does the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedleak.errors import FedleakError, ScenarioError
from fedleak.events import Event
from fedleak.experiment.resumable import run_into
from fedleak.process.files import make_folder, write_whole
from fedleak.process.lock import Lock
from fedleak.runs.earlier import sweep_row_of_today
from fedleak.runs.folder import Row
from fedleak.runs.forms import DoneForm
from fedleak.runs.reading import read_table
from fedleak.scenario.code import code_of
from fedleak.scenario.schema import Scenario
from fedleak.sweeps.rows import run_rows

CELLS, DONE, LOCKS = "cells", "done", "locks"
WORK = "fedleak.sweeps.cell:work"
"""What a worker process is started with."""
_PATIENCE = 60.0  # seconds for the worker of a killed sweep to notice that it is alone


@dataclass(frozen=True)
class Job:
    """What a worker needs to know of a cell; travels as JSON.

    Attributes
    ----------
    name : str
        The cell's.
    out : str
        The sweep's folder, absolute.
    scenario : str
        As :meth:`fedleak.scenario.schema.Scenario.to_json` writes it.
    facts : dict
        What each of the cell's rows says beside what the run itself says.
    device : str
        Where attacks compute.
    secret : str, optional
        What the clients draw from where the scenario has none: the same in all cells, so that they differ in nothing else.
    """

    name: str
    out: str
    scenario: str
    facts: dict[str, Any]
    device: str
    secret: str | None = None

    def to_json(self) -> str:
        """Return the job as one line of JSON; :meth:`from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Read what :meth:`to_json` wrote."""
        return cls(**json.loads(text))


def run_cell(job: Job, tell: Callable[[str], None] = lambda what: None) -> None:
    """Run a cell, or the rest of it, and write its rows to ``done/NAME.json``.

    Parameters
    ----------
    job : Job
        Which cell.
    tell : callable
        Told in a few words how far it is.

    Raises
    ------
    FedleakError
        If the run cannot go on.
    """
    out, scenario = Path(job.out), Scenario.from_json(job.scenario)
    with Lock(out / LOCKS / job.name, f"{job.name}: another process runs this cell", _PATIENCE):
        if done_rows(out, job.name, scenario.digest) is not None:
            return
        result = run_into(scenario, out / CELLS / job.name, device=job.device, listener=_Listener(tell), secret=job.secret)
        rows = [{**job.facts, **row} for row in run_rows(result.path, known=code_of(scenario).values())]
        _write(out, job.name, {"digest": scenario.digest, "rows": rows})


def work(line: str, tell: Callable[[str], None]) -> None:
    """Run the cell of a job's line, as a worker process does."""
    run_cell(Job.from_json(line), tell)


def done_rows(out: Path, name: str, digest: str) -> list[Row] | None:
    """Return the rows of a finished cell; ``None`` if it is not finished, or its run folder is gone."""
    path = out / DONE / f"{name}.json"
    if not path.is_file() or not (out / CELLS / name / "manifest.json").is_file():
        return None
    try:
        found = read_table(path, DoneForm, "", _done_of_today)
    except ScenarioError:  # damaged: made again, out of the run folder
        return None
    rows: list[Row] | None = found["rows"] if found is not None and found["digest"] == digest else None
    return rows


def _done_of_today(found: Row) -> Row:
    rows = found.get("rows")
    rows = [sweep_row_of_today(row) if isinstance(row, dict) else row for row in rows] if isinstance(rows, list) else rows
    return {**found, "rows": rows}


def _write(out: Path, name: str, content: Row) -> None:
    try:
        make_folder(out, DONE)
        # Whole or not at all: a cell with rows is finished.
        write_whole(out, f"{DONE}/{name}.json", json.dumps(content, allow_nan=False).encode(), sync=False)
    except OSError as error:
        raise FedleakError(f"{out / DONE}: cannot be written ({error.strerror}); make room, or remove the link there") from error


class _Listener:
    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._round = ""

    def __call__(self, event: Event) -> None:
        facts = event.facts
        if event.kind == "round":
            self._round = f"round {facts['round']} of {facts['rounds']}"
            self._tell(f"{self._round}, training")
        elif event.kind == "attack":
            self._tell(f"{self._round}, {facts['attack']}, update {facts['number']} of {facts['total']}")
