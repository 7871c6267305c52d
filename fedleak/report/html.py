"""The HTML page of a run: one self-contained file that opens from disk and asks the network for nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from fedleak.errors import FedleakError
from fedleak.evaluation.flags import FLAGS
from fedleak.evaluation.privacy import said, spent
from fedleak.evaluation.resources import resources
from fedleak.evaluation.utility import by_client, utility
from fedleak.modalities.base import Measure
from fedleak.process.files import write_whole
from fedleak.report import asked, formats
from fedleak.report.beside import beside
from fedleak.report.faults import faults
from fedleak.report.figures import DASHES, MARKERS, fidelity_chart, loss_chart, marks, rounds_chart, series_colour
from fedleak.report.gallery import Cell, Gallery, Place, Series, bands
from fedleak.report.pages import asset, render
from fedleak.report.verdict import verdict
from fedleak.runs.records import RunRecords, number, read_records, table

FEW_EXAMPLES = 24
"""Up to so many private examples are all shown at once; of more, the best, the median and the worst come first."""

MOST_EXAMPLES = 240
"""So many private examples are drawn at most, so that a long run's page still opens; the page says what it leaves out."""

MOST_ROWS = 2_000
"""So many rows and so many clients the page's tables hold at most; those left out are in the run folder's files."""
MOST_FAULTS = 200
"""So many lines the page has for what went wrong; every row has its own error."""


@dataclass(frozen=True)
class Band:
    """One table of the grid of examples: places side by side, the private ones on top, one row for each series."""

    rounds: list[tuple[str, int]]
    places: list[Place]
    truths: list[Cell]
    lines: list[tuple[Series, list[Cell]]]


@dataclass(frozen=True)
class Pick:
    """Best, median or worst of a series: the private example and what was made of it."""

    title: str
    place: Place
    truth: Cell
    rebuilt: Cell


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run folder, finished or not.

    Parameters
    ----------
    folder : Path
        A run folder; any of its files may be missing.

    Returns
    -------
    Path
        ``folder / "report.html"``: CSS, exhibits and charts (as SVG) are inside it.

    Raises
    ------
    ScenarioError
        If ``folder`` is not a run folder.
    FedleakError
        If the page cannot be written.
    """
    folder = Path(folder)
    page = render("report.html.j2", _context(read_records(folder)))
    try:
        return write_whole(folder, "report.html", page.encode(errors="replace"), sync=False)
    except OSError as error:
        raise FedleakError(
            f"{folder / 'report.html'}: cannot be written ({error.strerror}); make room, then: fedleak report {folder}"
        ) from error


def _context(records: RunRecords) -> dict[str, Any]:
    gallery = Gallery(records)
    truth = table(records.scenario, "evaluation").get("truth")
    return {
        "name": formats.plain(records.scenario.get("name") or records.folder.resolve().name),
        "digest": formats.plain(records.manifest.get("digest"))[:10],
        "created": formats.moment(records.manifest.get("created")),
        "verdict": verdict(records, gallery),
        "progress": _progress(records),
        "measure": gallery.measure,
        "dashes": DASHES,
        **_examples(gallery),
        "leakage": (leakage := [_leak(row, gallery.measure) for row in records.leakage]),
        "beside": [
            figure
            for figure in gallery.measure.beside
            if not figure.optional or any(figure.name in row["beside"] for row in leakage)
        ],
        "legend": [
            (series.title, series_colour(index), MARKERS[index % len(MARKERS)]) for index, series in enumerate(gallery.series)
        ],
        "rounds_chart": rounds_chart(gallery, records.rounds),
        "fidelity_chart": fidelity_chart(gallery),
        "loss_chart": loss_chart(records.rounds),
        "told": beside(records, gallery.class_names),
        "no_utility": "" if any(number(row.get("accuracy")) is not None for row in records.rounds) else _no_utility(records),
        **_costs(records),
        "server": _server(records),
        "origins": _origins(records, gallery.measure),
        "preset": asked.preset(records),
        "grants": asked.grants(records),
        "facts": asked.facts(records),
        "identifiability": asked.identifiability(records),
        "attacks": asked.plugins(records, "attacks"),
        "defenses": asked.plugins(records, "defenses"),
        "flags": _flags(records),
        "faults": (found := faults(records))[:MOST_FAULTS],
        "fault_count": len(found),
        "troubles": sum(not fault.attack for fault in found),
        "rows": [_row(row, gallery) for row in records.rows[:MOST_ROWS]],
        "row_count": len(records.rows),
        "marked": marks(gallery),
        "private": gallery.reveals or truth == "reveal",
        "shut": records.folder.stat().st_mode & 0o077 == 0,
        "scenario_file": asked.to_toml(records.scenario) if records.scenario else None,
        "style": asset("style.css"),
    }


def _examples(gallery: Gallery) -> dict[str, Any]:
    many = len(gallery.places) > FEW_EXAMPLES
    shown = gallery.places[:MOST_EXAMPLES]
    wide = 4 if len(shown) <= 4 else 8
    picks = (
        [(series, [_pick(gallery, series, *pick) for pick in gallery.picks(series)]) for series in gallery.series] if many else []
    )
    return {
        "many": many,
        "example_count": len(gallery.places),
        "shown_count": len(shown),
        "picks": [(series, found) for series, found in picks if found],
        "bands": [_band(gallery, places) for places in bands(shown, wide)],
        "reveals": gallery.reveals,
        "folder": gallery.exhibit.folder,
        "target": 160 if len(shown) <= 4 else 96,
        "single_chain": len({(series.threat, series.defenses) for series in gallery.series}) <= 1,
    }


def _band(gallery: Gallery, places: list[Place]) -> Band:
    rounds = [(f"Round {at}", size) for at, size in Counter(place.round for place in places).items()]
    truths = [gallery.truth_cell(place) for place in places]
    lines = [(series, gallery.line(series, places)) for series in gallery.series]
    return Band(rounds, places, truths, [line for line in lines if any(cell.kind != "empty" for cell in line[1])])


def _pick(gallery: Gallery, series: Series, title: str, place: Place) -> Pick:
    return Pick(title, place, gallery.truth_cell(place), gallery.cell(series, place))


def _progress(records: RunRecords) -> list[str]:
    notes = list(records.repairs)
    if not records.finished:
        total = f" of {records.rounds_asked}" if records.rounds_asked is not None else ""
        notes.insert(0, f"This run did not reach its end: {records.rounds_done}{total} rounds recorded.")
    return notes


def _leak(row: dict[str, Any], measure: Measure) -> dict[str, Any]:
    metrics, headline = table(row, "metrics"), measure.headline
    spread = table(metrics, headline.name)
    median = number(spread.get("median"))
    guesses = [measure.guess(row, baseline.name) for baseline in measure.baselines]
    above = (
        baseline.phrase
        for baseline, guess in zip(measure.baselines, guesses, strict=True)
        if median is not None and guess is not None and not headline.nearer(median, guess)
    )
    means = {figure.name: table(metrics, figure.name).get("mean") for figure in measure.beside}
    keys = ("attack", "threat", "defenses", "examples", "failures", "label_accuracy", "label_counts", "identification")
    return {
        **{key: row.get(key) for key in (*keys, "identification_features", "success", "cpu_seconds")},
        "headline": {key: spread.get(key) for key in ("median", "mean", "min", "max")},
        "beside": {name: mean for name, mean in means.items() if number(mean) is not None},
        "guesses": guesses,
        "note": next((f"Not above {phrase}" for phrase in above), ""),
    }


def _origins(records: RunRecords, measure: Measure) -> dict[str, str]:
    """Return what the baselines are made of, by name, those of which it matters."""
    split = records.manifest.get("has_test_split")
    found = {}
    for baseline in measure.baselines:
        if baseline.with_test:
            known = {True: baseline.with_test, False: baseline.without_test}
            found[baseline.name] = known[split] if isinstance(split, bool) else f"that of public {measure.nouns}"
    return found


def _costs(records: RunRecords) -> dict[str, Any]:
    """Return what each client paid and was promised, and the same for all of them in a round."""
    rounds = [row for row in records.rounds if (number(row.get("round")) or 0) >= 1]
    private = spent(rounds)
    promised = private["by_client"] if private else {}
    clients = by_client(rounds)
    return {
        "clients": [
            {"client": client, **costs, "epsilon": promised.get(client)} for client, costs in islice(clients.items(), MOST_ROWS)
        ],
        "client_count": len(clients),
        "cost": utility([{"accuracy": None, "loss": None, **row} for row in rounds])["cost"],
        "epsilon": private["epsilon"] if private else None,
        "promise": _promise(private) if private else "",
    }


def _server(records: RunRecords) -> list[str]:
    """Return what the run cost the machine that served it, a sentence each."""
    found = resources([row for row in records.rounds if (number(row.get("round")) or 0) >= 1])
    seconds, attacks, held = found["seconds"], found["attack_seconds"], found["memory"]
    sentences = []
    if seconds["median"] is not None:
        sentences.append(
            f"A round took {formats.duration(seconds['median'])} s (median; the first {formats.duration(seconds['first'])}, "
            f"the last {formats.duration(seconds['last'])}, the longest {formats.duration(seconds['max'])})"
            + (f", and its attacks {formats.duration(attacks['median'])} s more." if attacks["max"] else ".")
        )
    if held["last"] is not None:
        # In whole megabytes, so that growth shows.
        first, last, peak = (held[key] and formats.count(held[key] / 1e6) for key in ("first", "last", "peak"))
        most = f", {peak} MB at most." if peak else "."
        sentences.append(
            f"The server's process held {first} MB of memory after the first round and {last} MB after the last{most}"
        )
    if (bytes_kept := number(table(records.summary, "resources").get("disk"))) is not None:
        sentences.append(f"The run folder took {formats.size(bytes_kept)}.")
    return sentences


def _promise(private: dict[str, Any]) -> str:
    if private.keys() >= ({"no_epsilon"} if private["epsilon"] is None else {"delta", "privacy_unit"}):
        return said(private) + "."
    return f"Epsilon {formats.decimals(private['epsilon'], 2)} at most; the rows do not say at which delta."


def _no_utility(records: RunRecords) -> str:
    if records.manifest.get("has_test_split") is False:
        return "The data source has no test split, so the model's accuracy was not measured."
    return "No accuracy has been recorded."


def _flags(records: RunRecords) -> list[dict[str, Any]]:
    raised: Counter[str] = Counter()
    attacks: dict[str, dict[str, None]] = {}
    for row in records.rows:
        flags = row.get("flags")
        for name in dict.fromkeys(str(flag) for flag in flags) if isinstance(flags, list) else ():
            raised[name] += 1
            attacks.setdefault(name, {})[str(row.get("attack"))] = None
    found = []
    for name, times in raised.most_common():
        flag = FLAGS.get(name)
        meaning = (
            flag.meaning if flag else "This version of fedleak does not know this flag; its plugin's documentation explains it."
        )
        found.append(
            {
                "name": name,
                "count": times,
                "attacks": list(attacks[name]),
                "meaning": meaning,
                "advice": flag.advice if flag else "",
            }
        )
    return found


def _row(row: dict[str, Any], gallery: Gallery) -> dict[str, Any]:
    keys = (
        "round",
        "client",
        "example",
        "attack",
        "threat",
        "defenses",
        "label_counts",
        "identified",
        "identified_features",
        "cpu_seconds",
        "iterations",
        "method",
        "unknowns",
        "equations",
    )
    return {
        **{key: row.get(key) for key in (*keys, "stop_reason", "loss", "flags", "error")},
        "metrics": {figure.name: gallery.measure.value(row, figure.name) for figure in gallery.measure.figures},
        "guesses": [gallery.measure.guess(row, baseline.name) for baseline in gallery.measure.baselines],
        "label": formats.class_name(row.get("label"), gallery.class_names),
        "label_restored": formats.class_name(row.get("label_restored"), gallery.class_names),
    }
