"""The HTML page of a sweep: verdicts, leakage against accuracy, examples, every line, and the rules; one self-contained file."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from fedleak.modalities.find import measure_of
from fedleak.printable import plural
from fedleak.report import formats
from fedleak.report.figures import DASHES
from fedleak.report.gallery import Cell, Gallery, Place
from fedleak.report.pages import asset, render
from fedleak.runs.folder import Row
from fedleak.runs.records import read_records
from fedleak.sweeps import verdicts as rules
from fedleak.sweeps.folder import SweepFolder, replace_file
from fedleak.sweeps.lines import Line, figures, lines
from fedleak.sweeps.page.figures import Point, gain_chart, trade_chart
from fedleak.sweeps.verdicts import Attacked, Verdict, Word, verdicts

MOST_SETTINGS = 6
"""So many settings get charts and examples of their own; the tables hold all."""

_SHOWN = 6
_WORDS: tuple[tuple[Word, str, str], ...] = (
    ("leaks", "leaks", "leak"),
    ("degrades", "degrades", "degrade"),
    ("blocks", "blocks", "block"),
    ("inconclusive", "is inconclusive", "are inconclusive"),
)


@dataclass(frozen=True)
class Grid:
    """Truth against attack: the same private examples under each defense, by its best attack, from one seed's runs."""

    seed: str
    truths: list[Cell]
    rows: list[tuple[str, str, list[Cell]]]


@dataclass(frozen=True)
class Setting:
    """All that the page shows of one setting."""

    title: str
    verdicts: list[Verdict]
    gains: Markup | None
    trade: Markup | None
    attacks: list[tuple[str, int]]
    defenses: list[tuple[str, int]]
    grid: Grid | None


def write_sweep_report(path: Path) -> Path:
    """Write ``sweep.html`` into a sweep's folder, finished or not, from its table and its run folders.

    Raises
    ------
    ScenarioError
        If the folder is no sweep's.
    """
    folder = SweepFolder.open(Path(path))
    page = render("sweep.html.j2", _context(folder))
    return replace_file(folder.path, "sweep.html", page.encode(errors="replace"))


def _context(folder: SweepFolder) -> dict[str, Any]:
    asked, rows = folder.asked(), folder.rows()
    judged = verdicts(rows)
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    cells = asked.get("cells", [])
    done = {row["cell"] for row in rows if not row["error"]}
    failed = [row for row in rows if row["error"] or row.get("client_errors")]
    found = lines(rows)
    words = {(verdict.setting, verdict.defense): verdict for verdict in judged}
    return {
        "name": asked.get("name"),
        "about": asked.get("about"),
        "started": formats.moment(asked.get("started")),
        **_headline(judged),
        "measure": (measure := measure_of([row for row in rows if row.get("modality")])),
        "beside": [one for one in measure.beside if not one.optional],
        "dashes": DASHES,
        "total": len(cells),
        "done": len(done),
        "settings": [_setting(folder, title, rows, judged, index) for index, title in enumerate(settings[:MOST_SETTINGS])],
        "setting_count": len(settings),
        "judged": judged,
        "empirical": any(verdict.empirical for verdict in judged),
        "membership": any(verdict.membership is not None for verdict in judged),
        "lines": [_line(line, words[line.first["setting"], line.first["defense"]]) for line in found],
        "failed": [{key: row.get(key) for key in ("cell", "folder", "error", "client_errors", "client_error")} for row in failed],
        "rules": _paragraphs(rules.__doc__ or ""),
        "file": asked.get("file"),
        "command": shlex.join(["fedleak", "sweep", "sweep.toml", *map(str, asked.get("options") or ())]),
        "private": any(example.get("exhibit") for row in rows for example in row.get("examples") or ()),
        "many_seeds": len({row["seed"] for row in rows}) > 1,
        "style": asset("style.css"),
        "more_style": asset("tables.css"),
    }


def _headline(judged: Sequence[Verdict]) -> dict[str, Any]:
    defended = [verdict for verdict in judged if not verdict.control]
    found = Counter(verdict.word for verdict in defended)
    if not defended:
        return {"headline": "No defense has been judged yet." if judged else "No run is finished yet.", "counts": []}
    counts = [(word, found[word], plural if found[word] > 1 else one) for word, one, plural in _WORDS if found[word]]
    return {"headline": f"Of {plural(len(defended), 'defended case')},", "counts": counts}


def _setting(folder: SweepFolder, title: str, rows: Sequence[Row], judged: Sequence[Verdict], index: int) -> Setting:
    mine = [row for row in rows if row["setting"] == title]
    found = lines(mine)
    attacks = {name: number for number, name in enumerate(dict.fromkeys(line.first["attack"] for line in found))}
    families = {name: number for number, name in enumerate(dict.fromkeys(verdict.family for verdict in judged))}
    here = [verdict for verdict in judged if verdict.setting == title]
    guesses, measure = _guesses(found), measure_of(mine)
    by_defense: dict[str, list[Point]] = {}
    for line in found:
        points = by_defense.setdefault(line.first["defense"], [])
        if line.attacked is not None:
            points.append(_point(line.first["defense"], attacks[line.first["attack"]], line.attacked, None))
    best = [
        _point(_mark_name(verdict), families[verdict.family], verdict.best, verdict.accuracy)
        for verdict in here
        if verdict.best is not None
    ]
    return Setting(
        title=title,
        verdicts=here,
        gains=gain_chart(list(by_defense.items()), guesses, measure, str(index)) if best else None,
        trade=trade_chart(best, guesses, measure, str(index)),
        attacks=list(attacks.items()),
        defenses=[(name, number) for name, number in families.items() if any(verdict.family == name for verdict in here)],
        grid=_grid(folder, mine, here),
    )


def _mark_name(verdict: Verdict) -> str:
    """Return what tells the mark from others of its colour."""
    return verdict.strength.rpartition("=")[2]


def _guesses(found: Sequence[Line]) -> dict[str, float]:
    """Return how much each baseline gains over the better one, on the mean over examples."""
    means = {guess.name: line.guess(guess.name) for line in found[:1] for guess in line.measure.baselines}
    known = {kind: value for kind, value in means.items() if value is not None}
    return {kind: value - max(known.values()) for kind, value in known.items()}


def _point(label: str, series: int, found: Attacked, accuracy: float | None) -> Point:
    return Point(label, series, found.gain.mean, found.gain.low, found.gain.high, accuracy)


def _grid(folder: SweepFolder, rows: Sequence[Row], here: Sequence[Verdict]) -> Grid | None:
    if not rows:
        return None
    seed = rows[0]["seed"]
    galleries: dict[str, tuple[str, Gallery]] = {}
    for verdict in here:
        attack = verdict.best.attack if verdict.best else None
        row = next((row for row in rows if (row["seed"], row["defense"], row["attack"]) == (seed, verdict.defense, attack)), None)
        if attack is not None and row is not None and (folder.cell(row["cell"]) / "manifest.json").is_file():
            galleries[verdict.defense] = attack, Gallery(read_records(folder.cell(row["cell"])))
    first = next((gallery for _, gallery in galleries.values() if gallery.reveals), None)
    if first is None:
        return None
    chosen = _first_places(first)
    table = [
        (defense, attack, [_rebuilt(gallery, attack, place, first.identity(place)) for place in chosen])
        for defense, (attack, gallery) in galleries.items()
    ]
    return Grid(formats.plain(seed), [first.truth_cell(place) for place in chosen], table)


def _first_places(gallery: Gallery) -> list[Place]:
    found: dict[str, Place] = {}
    for place in gallery.places:
        if (identity := gallery.identity(place)) is not None:
            found.setdefault(identity, place)
    return list(found.values())[:_SHOWN]


def _rebuilt(gallery: Gallery, attack: str, place: Place, identity: str | None) -> Cell:
    series = next((series for series in gallery.series if series.attack == attack), None)
    # A defense that changes the batch trains on other examples at the same place.
    if series is None or gallery.identity(place) not in (identity, None):
        return Cell("empty")
    return gallery.cell(series, place)


def _line(line: Line, verdict: Verdict) -> Row:
    first, found = line.first, line.attacked
    return {
        **{key: first[key] for key in ("family", "strength", "setting", "threat", "model", "attack")},
        "defense_known": first["defense_known"],
        "knows_defense": first["knows_defense"],
        "batch": _batch(first),
        **figures(line),
        "gain": found.gain.mean if found else None,
        "half": found.gain.half if found and math.isfinite(found.gain.half) else None,
        "worst": found.worst if found else None,
        "leaked": found.leaked if found else None,
        "examples": found.gain.examples if found else 0,
        "failures": line.total("failures"),
        "failure": next((row["failure"] for row in line.rows if row["failure"]), None),
        **{key: line.mean(key) for key in ("label_accuracy", "identification", "chance")},
        **{key: line.mean(key) for key in ("accuracy", "epsilon", "cpu_seconds", "seconds", "bytes", "coded_bytes")},
        **{key: line.mean(key) for key in ("empirical_epsilon", "membership_auc", "membership_tpr")},
        "word": verdict.word,
        "runs": [(formats.plain(row["seed"]), quote(f"{row['folder']}/report.html")) for row in line.rows],
    }


def _batch(row: Row) -> str:
    steps = f", {row['steps']} steps" if row.get("steps") else ""
    return f"{row['protocol']}, batch {row['batch']}{steps}"


def _paragraphs(document: str) -> list[str]:
    """Return the rules paragraph by paragraph; each numbered rule is one."""
    found: list[str] = []
    for line in "\n".join(document.strip().split("\n")).split("\n"):
        text = line.strip()
        if not text:
            found.append("")
        elif not found or text[:2] in {f"{number}." for number in range(1, 10)}:
            found.append(text)
        else:
            found[-1] = f"{found[-1]} {text}".strip()
    return [text for text in found if text]
