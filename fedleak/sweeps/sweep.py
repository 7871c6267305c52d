"""A sweep: checks every cell, runs what is not finished yet, and writes one table, the verdicts and the page."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

from fedleak.errors import ScenarioError
from fedleak.experiment.check import Checked, check, pick_device
from fedleak.process.lock import Lock
from fedleak.process.pool import Pool
from fedleak.runs.folder import Row
from fedleak.scenario.secret import fingerprint, secret_of
from fedleak.sweeps.cell import WORK, Job, done_rows
from fedleak.sweeps.cluster import Cluster
from fedleak.sweeps.folder import SweepFolder
from fedleak.sweeps.page.html import write_sweep_report
from fedleak.sweeps.plan import Cell, Plan, load_sweep
from fedleak.sweeps.verdicts import Verdict, verdicts

_PAUSE = 2.0  # seconds between two writings of the table while cells finish


@dataclass(frozen=True)
class SweepResult:
    """What a sweep left behind.

    Attributes
    ----------
    path : Path
        The sweep's folder.
    rows : list of dict
        ``sweep.jsonl``: one row for each cell and attack.
    verdicts : list of Verdict
        One for each setting and defense, the controls among them.
    """

    path: Path
    rows: list[Row]
    verdicts: list[Verdict]

    @property
    def report(self) -> Path:
        """The HTML page."""
        return self.path / "sweep.html"

    @property
    def failed(self) -> list[Row]:
        """The rows of cells that broke off, or in which clients failed."""
        return [row for row in self.rows if row["error"] or row.get("client_errors")]


class SweepWatcher(Protocol):
    """Told what happens to the cells of a sweep."""

    def begin(self, total: int, finished: int, workers: int | None) -> None:
        """Take how many cells there are, how many are finished already, and how many run at a time; ``None`` if Ray decides."""

    def at(self, name: str, what: str) -> None:
        """Take how far a cell is."""

    def done(self, name: str, error: str | None, rows: Sequence[Row]) -> None:
        """Take that a cell is finished, with its rows, or why it is not."""


class _Unwatched:
    def begin(self, total: int, finished: int, workers: int | None) -> None:
        pass

    def at(self, name: str, what: str) -> None:
        pass

    def done(self, name: str, error: str | None, rows: Sequence[Row]) -> None:
        pass


def sweep(
    path: str | Path,
    *,
    form: Literal["small", "full"] = "small",
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    device: str = "auto",
    jobs: int | None = None,
    ray: str | None = None,
    watcher: SweepWatcher | None = None,
    on_start: Callable[[Path], None] = lambda folder: None,
) -> SweepResult:
    """Run all cells of a sweep that are not finished yet, side by side, and judge the defenses.

    Parameters
    ----------
    path : str or Path
        The sweep's TOML file.
    form, overrides
        See :func:`fedleak.sweeps.plan.load_sweep`.
    out : str or Path, optional
        The sweep's folder; by default ``runs/NAME``. What is finished there is not run again, and what was broken off goes
        on after its last whole round; a cell that failed is tried again.
    device : str
        Where attacks compute; ``"auto"`` is CUDA if there is any.
    jobs : int, optional
        How many cells run at a time, each in a process of its own with one thread; by default one a core.
    ray : str, optional
        Run the cells on this Ray cluster instead: ``"auto"``, ``"local"`` or ``"HOST:PORT"``.
    watcher : SweepWatcher, optional
        Told what happens to the cells.
    on_start : callable
        Told the folder before anything runs.

    Returns
    -------
    SweepResult
        The folder, its rows and the verdicts. After an interrupt the table and the page of what was done are written before
        ``KeyboardInterrupt`` goes on to the caller.

    Raises
    ------
    ScenarioError
        If anything asked for is wrong, or another process works in the folder; no cell has started then.
    """
    plan = load_sweep(path, form, overrides)
    device = pick_device(device)
    facts = [cell_facts(cell, checked) for cell, checked in check_cells(plan, str(path), device)]
    place = Path(out) if out is not None else Path("runs") / plan.name
    folder = SweepFolder.prepare(place)
    with Lock(place / "sweep.lock", f"{place}: another sweep is at work there"):
        folder.ask(_asked(plan, Path(path), facts, [*(["--full"] if form == "full" else []), *_set(overrides)]))
        on_start(place)
        audience = watcher or _Unwatched()
        desk = _Desk(folder, facts, audience)
        finished = desk.finished
        drawn = secret_of(place)
        left = [
            Job(cell.name, str(place.resolve()), cell.scenario.to_json(), fact, device, drawn)
            for cell, fact in zip(plan.cells, facts, strict=True)
            if cell.name not in finished
        ]
        workers = jobs or (None if ray else _cores())
        audience.begin(len(facts), len(facts) - len(left), workers)
        runner = Cluster(ray, jobs) if ray else Pool(workers or 1, place / "workers.log", WORK)
        try:
            if left:
                runner.run(left, desk)
        finally:
            rows = desk.close()
            write_sweep_report(place)
    return SweepResult(place, rows, verdicts(rows))


def check_cells(plan: Plan, where: str, device: str = "cpu") -> list[tuple[Cell, Checked]]:
    """Build everything that each cell needs, and refuse them all if one could not run.

    Raises
    ------
    ScenarioError
        With one line: which cell, what is wrong with it, what to do.
    """
    found = []
    for cell in plan.cells:
        try:
            found.append((cell, check(cell.scenario, device)))
        except ScenarioError as error:
            raise ScenarioError(f"{where}: cell '{cell.name}': {error}") from error
    return found


def cell_facts(cell: Cell, checked: Checked) -> Row:
    """Return what each of the cell's rows says beside what the run says itself."""
    shards = [len(checked.data.shard(client)) for client in range(cell.scenario.federation.clients)]
    return {
        "cell": cell.name,
        "folder": f"cells/{cell.name}",
        "digest": cell.scenario.digest,
        "defense": cell.defense.label,
        "family": cell.defense.family,
        "strength": cell.defense.strength,
        "chain": list(cell.defense.chain),
        "control": cell.control,
        "setting": cell.setting,
        "axes": cell.axes,
        "seed": cell.scenario.seed,
        # A client with one image has nothing to tell it from.
        "chance": statistics.fmean(1 / size for size in shards if size > 1) if any(size > 1 for size in shards) else None,
    }


class _Desk:
    """Keeps the table up to date while cells finish."""

    def __init__(self, folder: SweepFolder, facts: list[Row], watcher: SweepWatcher) -> None:
        self._folder, self._facts, self._watcher = folder, {fact["cell"]: fact for fact in facts}, watcher
        found = ((name, done_rows(folder.path, name, fact["digest"])) for name, fact in self._facts.items())
        self._rows = {name: rows for name, rows in found if rows is not None}
        self._written = 0.0

    @property
    def finished(self) -> set[str]:
        """The names of the cells that are finished."""
        return {name for name, rows in self._rows.items() if not rows[0]["error"]}

    def at(self, name: str, what: str) -> None:
        self._watcher.at(name, what)

    def done(self, name: str, error: str | None) -> None:
        fact = self._facts[name]
        rows = done_rows(self._folder.path, name, fact["digest"])
        if rows is None:
            error = error or "its files are not seen here; --out must be on a file system that all machines share"
            self._rows[name] = [{**fact, "attack": None, "error": error}]
        else:
            self._rows[name] = rows
        if time.monotonic() - self._written > _PAUSE:
            self.close()
        self._watcher.done(name, None if rows else error, rows or ())

    def close(self) -> list[Row]:
        """Write and return the table of all that is there, in the order of the cells."""
        rows = [row for name in self._facts for row in self._rows.get(name, ())]
        self._folder.write_table(rows)
        self._written = time.monotonic()
        return rows


def _set(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def _asked(plan: Plan, path: Path, facts: list[Row], options: list[str]) -> Row:
    def told(text: str) -> str:
        for secret in {cell.scenario.secret for cell in plan.cells if cell.scenario.secret}:
            text = re.sub(re.escape(secret), str(fingerprint(secret)), text, flags=re.IGNORECASE)
        return text

    return {
        "name": plan.name,
        "about": plan.about,
        "file": told(path.read_text(encoding="utf-8")),
        "options": [told(option) for option in options],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": version("fedleak"),
        "cells": facts,
    }


def _cores() -> int:
    count: Any = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return len(count)
