"""The sweep's folder: what was asked, one run folder a cell, and one table of all rows.

::

    sweep.json      the file that asked, and every cell with its digest
    cells/NAME/     one run folder a cell
    done/NAME.json  the rows of a finished cell, written whole when it is
    sweep.jsonl     all rows, one a line: cell x attack; sweep.csv is the same without the single images
    sweep.html      the page
    client.secret   what clients draw from in cells whose scenario has no secret
    locks/  sweep.lock  workers.log
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedleak.errors import FedleakError, ScenarioError
from fedleak.modalities.find import measure_of
from fedleak.process.files import UNFINISHED, write_whole
from fedleak.runs.earlier import sweep_row_of_today
from fedleak.runs.folder import Row
from fedleak.runs.forms import SweepForm, SweepRowForm
from fedleak.runs.reading import check_kinds, read_rows, read_table
from fedleak.sweeps.cell import CELLS, DONE, LOCKS

_FILES = "sweep.json", "sweep.jsonl", "sweep.csv", "sweep.html", "sweep.lock", "workers.log"
_FOLDERS = CELLS, DONE, LOCKS
_BEFORE = (
    "cell",
    "defense",
    "family",
    "strength",
    "control",
    "setting",
    "seed",
    "threat",
    "defense_known",
    "model",
    "data",
    "protocol",
    "batch",
    "steps",
    "rounds",
    "attack",
    "knows_defense",
    "graded",
    "failures",
)
_AFTER = (
    "gain",
    "gain_max",
    "label_accuracy",
    "identification",
    "chance",
    "accuracy",
    "epsilon",
    "empirical_epsilon",
    "empirical_low",
    "empirical_high",
    "membership_auc",
    "membership_tpr",
    "cpu_seconds",
    "seconds",
    "bytes",
    "coded_bytes",
    "client_errors",
    "folder",
    "digest",
    "error",
)


class SweepFolder:
    """One sweep's folder, private to its owner because it holds run folders.

    Parameters
    ----------
    path : Path
        The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def prepare(cls, path: Path) -> SweepFolder:
        """Make the folder, or take that of an earlier start.

        Raises
        ------
        ScenarioError
            If something else is there, or a link within, or the folder cannot be made.
        """
        try:
            taken = path.exists() and not (path.is_dir() and all(_of_a_start(found.name) for found in path.iterdir()))
            if taken and not (path / "sweep.json").is_file():
                raise ScenarioError(f"{path}: exists and is no sweep's folder; choose another --out")
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            check_kinds(path, _FILES, _FOLDERS)
        except OSError as error:
            raise ScenarioError(f"{path}: cannot be made ({error.strerror}); choose another --out") from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> SweepFolder:
        """Open the folder of an earlier sweep.

        Raises
        ------
        ScenarioError
            If it is none.
        """
        if not is_sweep(path):
            raise ScenarioError(f"{path}: no sweep's folder (it has no sweep.json); expected the --out of `fedleak sweep`")
        check_kinds(path, _FILES, _FOLDERS)
        return cls(path)

    def asked(self) -> Row:
        """Return ``sweep.json``.

        Raises
        ------
        ScenarioError
            If it cannot be read.
        """
        path = self.path / "sweep.json"
        found = read_table(path, SweepForm, "the folder is no sweep of fedleak, or is damaged; remove the file, and sweep again")
        if found is None:
            raise ScenarioError(f"{path}: missing; the folder is no sweep of fedleak, or is damaged")
        return found

    def ask(self, content: Row) -> None:
        """Write ``sweep.json``; call it with the folder locked.

        Raises
        ------
        ScenarioError
            If the folder holds another sweep.
        """
        other = self.asked().get("name") if (self.path / "sweep.json").is_file() else content["name"]
        if other != content["name"]:
            raise ScenarioError(f"{self.path}: holds the sweep '{other}', not '{content['name']}'; choose another --out")
        self._replace("sweep.json", json.dumps(content, indent=1, allow_nan=False))

    def rows(self) -> list[Row]:
        """Return all rows of ``sweep.jsonl``.

        Raises
        ------
        ScenarioError
            If a line is damaged; the message names it.
        """
        remedy = "start the same sweep again, which writes the table anew from done/"
        return read_rows(self.path / "sweep.jsonl", SweepRowForm, sweep_row_of_today, remedy)

    def write_table(self, rows: Sequence[Row]) -> None:
        """Write ``sweep.jsonl`` and ``sweep.csv`` whole: a reader sees the old ones or the new ones."""
        self._replace("sweep.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
        text = io.StringIO()
        flat = [_flat(row) for row in rows]
        figures = dict.fromkeys(key for row in flat for key in row)
        columns = [*_BEFORE, *(key for key in figures if key not in {*_BEFORE, *_AFTER}), *_AFTER]
        table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        for row in flat:
            table.writerow({key: _cell(value) for key, value in row.items()})
        self._replace("sweep.csv", text.getvalue())

    def cell(self, name: str) -> Path:
        """Return a cell's run folder."""
        return self.path / CELLS / name

    def _replace(self, name: str, content: str) -> None:
        replace_file(self.path, name, content.encode())


def is_sweep(path: Path) -> bool:
    """Whether a folder is a sweep's."""
    try:
        return (path / "sweep.json").is_file()
    except (OSError, ValueError):  # a name that is too long, or none
        return False


def replace_file(folder: Path, name: str, content: bytes) -> Path:
    """Write a file of a sweep whole; a link in its place is replaced, not followed.

    Raises
    ------
    FedleakError
        If it cannot be written.
    """
    try:
        return write_whole(folder, name, content, sync=False)
    except OSError as error:
        raise FedleakError(
            f"{folder / name}: cannot be written ({error.strerror}); what was done before is kept: make room, or remove what is "
            "in its place, and start again"
        ) from error


def _of_a_start(name: str) -> bool:
    """Whether a file is what a start that was killed at once leaves."""
    return name == "sweep.lock" or (name.startswith("sweep.json.") and name.endswith(UNFINISHED))


def _flat(row: Row) -> Row:
    """Return a row without the single examples, each figure and each guess in a column of its own."""
    plain = {key: value for key, value in row.items() if key in {*_BEFORE, *_AFTER}}
    if not row.get("metrics"):
        return plain
    measure = measure_of([row])
    headline = measure.headline.name
    metrics, guesses = row["metrics"], row.get("baseline") or {}
    return {
        **plain,
        headline: metrics.get(headline),
        f"{headline}_max": row.get("best"),
        **{guess.name: guesses.get(guess.name) for guess in measure.baselines},
        **{one.name: metrics.get(one.name) for one in measure.beside},
    }


def _cell(value: Any) -> Any:
    """Return a value for a spreadsheet, which would take a text that starts like a formula for one."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value[:1] else value
