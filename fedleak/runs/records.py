"""Reads what a run left in its folder, finished or not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedleak.errors import ScenarioError
from fedleak.evaluation.beside import found_beside
from fedleak.evaluation.summary import summarise
from fedleak.modalities.base import Exhibit
from fedleak.printable import plural
from fedleak.runs.earlier import summary_of_today
from fedleak.runs.folder import CANARIES, INFERENCES, scenario_in
from fedleak.runs.forms import ManifestForm, SummaryForm
from fedleak.runs.reading import read_rows, read_table
from fedleak.scenario.evaluation import DELTA


@dataclass(frozen=True)
class RunRecords:
    """What a run folder holds.

    Attributes
    ----------
    folder : Path
        Where it was read from.
    manifest : dict
        ``manifest.json``; empty if it is missing.
    rounds : list of dict
        ``rounds.jsonl``, the initial model as round 0.
    rows : list of dict
        ``reconstructions.jsonl``.
    summary : dict
        ``summary.json``; empty if it is missing.
    leakage : list of dict
        The summary's rows, or the same computed from ``rows``.
    problems : list of dict
        ``problems.jsonl``, which is there only if a round could not be shown to an attack.
    inferences : list of dict
        ``inferences.jsonl``, which is there only if something was read off updates without an image.
    beside : dict
        What the summary holds of it and of canaries, computed from the rows; see :mod:`fedleak.evaluation.beside`.
    """

    folder: Path
    manifest: dict[str, Any]
    rounds: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    leakage: list[dict[str, Any]]
    problems: list[dict[str, Any]]
    inferences: list[dict[str, Any]]
    beside: dict[str, Any]

    @property
    def rounds_done(self) -> int:
        """How many rounds are recorded, the initial model not counted."""
        return len({row["round"] for row in self.rounds if (number(row.get("round")) or 0) >= 1})

    @property
    def rounds_asked(self) -> int | None:
        """How many rounds the scenario asks for, if the manifest says so."""
        asked = number(table(self.scenario, "federation").get("rounds"))
        return None if asked is None else int(asked)

    @property
    def finished(self) -> bool:
        """Whether the run recorded every round and wrote its summary, which an interrupted run writes too; and kept all lines."""
        all_there = self.rounds_asked is None or self.rounds_done >= self.rounds_asked
        return bool(self.summary) and all_there and not self.repairs

    @property
    def repairs(self) -> list[str]:
        """A sentence for each time that a damaged folder was gone on with: what is missing."""
        return [
            f"{plural(int(one['lines']), 'line')} of {one['file']} missing"
            + (f": damaged, and set aside in {one['kept']}." if one["kept"] else ".")
            for one in rows_of(self.manifest, "repairs")
        ]

    @property
    def scenario(self) -> dict[str, Any]:
        """The scenario as a dict; empty if the manifest is missing."""
        return table(self.manifest, "scenario")


def read_records(folder: Path) -> RunRecords:
    """Read a run folder; missing files count as empty, and a torn last line as not written.

    Raises
    ------
    ScenarioError
        If ``folder`` is not a run folder, or a file in it is damaged.
    """
    names = ("manifest.json", "rounds.jsonl", "reconstructions.jsonl")
    if not any((folder / name).is_file() for name in names):
        raise ScenarioError(f"{folder}: not a run folder; expected one that holds {', '.join(names)}, as 'fedleak run' writes it")
    path = folder / "manifest.json"
    manifest = read_table(path, ManifestForm, "remove it, and the report says what the other files do") or {}
    if manifest:
        scenario_in(manifest, path)
    files = *names[1:], "problems.jsonl", INFERENCES, CANARIES
    rounds, rows, problems, inferences, canaries = (read_rows(folder / name) for name in files)
    again = f"make it again with: fedleak report {folder}"
    summary = read_table(folder / "summary.json", SummaryForm, again, summary_of_today) or {}
    leakage = summary["leakage"] if "leakage" in summary else summarise(rows)
    scenario = table(manifest, "scenario")
    seed, delta = number(scenario.get("seed")), number(table(scenario, "evaluation").get("delta"))
    beside = found_beside(inferences, canaries, int(seed or 0), delta or DELTA)
    return RunRecords(folder, manifest, rounds, rows, summary, leakage, problems, inferences, beside)


@dataclass(frozen=True)
class Shown:
    """One example of the run folder, as it is shown.

    Attributes
    ----------
    exhibit : Exhibit
        Knows how.
    content : bytes
        The file.
    """

    exhibit: Exhibit
    content: bytes

    def html(self, side: int, alt: str, truth: Shown | None = None) -> Markup:
        """Return it for a page; see :meth:`fedleak.modalities.base.Exhibit.html`."""
        return self.exhibit.html(self.content, side, alt, truth.content if truth is not None else None)


def read_exhibit(folder: Path, relative: Any, exhibit: Exhibit) -> Shown | None:
    """Return the file at ``relative`` inside ``folder``; ``None`` if it is missing, outside, or not whole."""
    if not isinstance(relative, str):
        return None
    try:
        root = folder.resolve()
        path = (root / relative).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            return None
        content = path.read_bytes()
    except (OSError, ValueError, RuntimeError):
        return None
    return Shown(exhibit, content) if exhibit.is_whole(content) else None


def table(owner: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the dict at ``key``, or an empty one."""
    value = owner.get(key)
    return value if isinstance(value, dict) else {}


def rows_of(owner: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return the dicts in the list at ``key``."""
    value = owner.get(key)
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list | tuple) else []


def number(value: Any) -> float | None:
    """Return ``value`` as a float, or ``None`` if it is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return None
    return float(value)
