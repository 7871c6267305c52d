"""The leaderboard: many runs' rows side by side, by threat model, each attack against each defense."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from fedleak.errors import ScenarioError
from fedleak.runs.folder import Row, is_run_folder
from fedleak.runs.records import read_records
from fedleak.scenario.schema import DefenseSpec, Scenario
from fedleak.sweeps.folder import SweepFolder, is_sweep
from fedleak.sweeps.lines import Line, lines
from fedleak.sweeps.page.leaderboard import spelt, write_page
from fedleak.sweeps.plan import CONTROL
from fedleak.sweeps.rows import run_rows


@dataclass(frozen=True)
class Board:
    """What the page shows.

    Attributes
    ----------
    page : Path
        The page.
    lines : list of Line
        One for each setting, defense and attack, runs that differ in the seed alone together.
    unfinished : list of str
        Runs that were left out because they are not finished.
    """

    page: Path
    lines: list[Line]
    unfinished: list[str]


def leaderboard(folders: Iterable[str | Path], out: str | Path = "leaderboard.html", *, allow_code: bool = False) -> Board:
    """Write one static page out of many runs.

    Parameters
    ----------
    folders : iterable of str or Path
        Run folders, and folders of sweeps, of which every finished cell counts.
    out : str or Path
        The page to write.
    allow_code : bool
        Whether attacks that a folder names as ``package.module:name`` may be imported, and so run, to ask what they know.

    Raises
    ------
    ScenarioError
        If a folder is neither, or damaged, or names an attack that is not allowed; or none holds a finished run with an attack.
    """
    rows, unfinished = [], []
    target = Path(out)
    for run in dict.fromkeys(run.resolve() for folder in folders for run in _runs(Path(folder))):
        if read_records(run).finished:
            rows += _rows(run, target, allow_code=allow_code)
        else:
            unfinished.append(os.path.relpath(run, target.resolve().parent))
    found = lines(rows, key=lambda row: row["key"])
    if not found:
        left = f"; {len(unfinished)} unfinished, such as {unfinished[0]}" if unfinished else ""
        raise ScenarioError(f"no finished run with an attack in these folders{left}; expected folders that `fedleak run` wrote")
    write_page(found, unfinished, target)
    return Board(target, found, unfinished)


def _runs(folder: Path) -> list[Path]:
    if is_sweep(folder):
        sweep = SweepFolder.open(folder)
        cells = [sweep.cell(str(cell["cell"])) for cell in sweep.asked().get("cells", [])]
        return [path for path in cells if is_run_folder(path)]
    if not is_run_folder(folder):
        raise ScenarioError(f"{folder}: no run folder and no sweep's; expected what `fedleak run` or `fedleak sweep` wrote")
    return [folder]


def _rows(run: Path, page: Path, *, allow_code: bool) -> list[Row]:
    scenario = Scenario.model_validate(read_records(run).scenario)
    # Runs that differ in the seed alone are one setting, whichever attacks each of them ran.
    setting = scenario.model_copy(update={"seed": 0, "attacks": ()}).digest
    report = os.path.relpath(run / "report.html", page.resolve().parent)
    found = []
    for row in run_rows(run, allow_code=allow_code):
        asked = {"plugin": row.get("plugin"), "parameters": row.get("parameters"), "attack": row["attack"]}
        found.append(
            {
                **row,
                "key": f"{setting} {json.dumps(asked, sort_keys=True)}",
                "defense": " + ".join(map(_spelt, scenario.defenses)) or CONTROL,
                "control": not scenario.defenses,
                "seed": scenario.seed,
                "report": quote(Path(report).as_posix()),
                "chance": None,
                "clients": scenario.federation.clients,
            }
        )
    return found


def _spelt(defense: DefenseSpec) -> str:
    return " ".join([defense.name, *spelt(defense.parameters)])
