"""Runs a scenario into a fixed folder: from the start, or on from wherever an earlier process was killed."""

from __future__ import annotations

import shutil
from pathlib import Path

from fedleak.errors import ScenarioError
from fedleak.events import Listener, silent
from fedleak.experiment.manifest import write_summary
from fedleak.experiment.result import Result
from fedleak.experiment.run import run
from fedleak.process.files import UNFINISHED
from fedleak.report.html import write_report
from fedleak.runs.folder import CHECKPOINT, Row, RunFolder
from fedleak.runs.records import read_records
from fedleak.scenario.schema import Scenario


def run_into(
    scenario: Scenario,
    place: Path,
    *,
    device: str = "auto",
    threads: int = 1,
    listener: Listener = silent,
    secret: str | None = None,
) -> Result:
    """Run ``scenario`` into ``place``; do only what an earlier process left undone there.

    A finished run is read and not repeated; one that was killed goes on after its last whole round, and one that was
    killed before it had a whole round starts again.

    Parameters
    ----------
    scenario : Scenario
        The experiment.
    place : Path
        Its run folder; may exist, if it is of the same experiment.
    device, threads, listener, secret
        As for :func:`fedleak.run`.

    Raises
    ------
    ScenarioError
        If the folder holds another experiment.
    """
    done = _rounds_done(scenario, place)
    if done is None:
        if place.exists():
            _clear(place)  # not one round is in it
        return run(scenario, out=place, device=device, threads=threads, listener=listener, secret=secret)
    if done < scenario.federation.rounds:
        return run(scenario, resume=place, device=device, threads=threads, listener=listener)
    summary = finished(scenario, place)
    if summary is None:  # killed between the last round and the report
        summary = write_summary(RunFolder.open(place))
        write_report(place)
    return Result(place, summary)


def finished(scenario: Scenario, place: Path) -> Row | None:
    """Return the summary of a finished run of ``scenario`` in ``place``; ``None`` if there is anything left to do."""
    if _rounds_done(scenario, place) != scenario.federation.rounds:
        return None
    summary = read_records(place).summary
    return summary if summary.get("rounds") == scenario.federation.rounds else None  # else it is of an earlier interrupt


def _rounds_done(scenario: Scenario, place: Path) -> int | None:
    if place.is_symlink():
        raise ScenarioError(f"{place}: is a link, and nothing is written through one; remove it, or choose another --out")
    if not (place / "manifest.json").exists():
        if place.exists() and not (place.is_dir() and all(_of_a_start(path.name) for path in place.iterdir())):
            raise ScenarioError(f"{place}: is in the way and no run folder; move it, or choose another --out")
        return None
    folder = RunFolder.open(place)
    if folder.scenario.digest != scenario.digest:
        raise ScenarioError(f"{place}: holds another experiment; choose another --out")
    if not (place / CHECKPOINT).exists():
        return None
    done, _, _ = folder.load_checkpoint()
    return done


def _clear(place: Path) -> None:
    try:
        shutil.rmtree(place)
    except OSError as error:
        raise ScenarioError(f"{place}: is in the way, and cannot be removed ({error}); choose another --out") from error


def _of_a_start(name: str) -> bool:
    """Whether a file is all that a start leaves which was killed before the manifest was in its place."""
    return name in ("captures", "images") or (name.startswith("manifest.json.") and name.endswith(UNFINISHED))
