"""The page's first sentence: what leaked, in numbers that the rows bear out."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fedleak.evaluation.flags import MISFIT
from fedleak.modalities.base import Measure
from fedleak.printable import plural
from fedleak.report.formats import enumerated, figure
from fedleak.report.gallery import Gallery, Place, Series
from fedleak.runs.records import RunRecords, rows_of, table
from fedleak.wire.received import NOT_ATTACKED

_UNFIT = (
    "cannot come of the local training that was told (flag no-sgd-step-fits; what does not fit stands with each row): attacks "
    "looked for what was not there."
)


@dataclass(frozen=True)
class Verdict:
    """What leaked: ``count`` and ``sentence`` read as one headline, ``details`` stand below it.

    ``leaks`` says whether any example was rebuilt.
    """

    count: str
    sentence: str
    details: list[str]
    leaks: bool = False


@dataclass(frozen=True)
class _Score:
    series: Series
    close: int
    total: int
    unit: str
    median: float
    graded: int
    failed: int
    updates: int
    unfit: int
    guesses: dict[str, float]  # by what a sentence calls them


def verdict(records: RunRecords, gallery: Gallery) -> Verdict:
    """Return the headline of a run, finished or not."""
    if table(records.scenario, "server").get("curious") is False:
        return Verdict("", "The server was not curious: it attacked nothing, so this run says nothing about leaks.", [])
    if records.scenario and not rows_of(records.scenario, "attacks"):
        if records.beside:
            return Verdict(
                "", "The scenario names no attack, so no image was rebuilt; what the updates tell without one is below.", []
            )
        return Verdict("", "The scenario names no attack, so this run says nothing about leaks.", [])
    if not records.rows:
        return Verdict("", "No attack has returned a result yet.", [])
    scores = [score for series in gallery.series if (score := _score(gallery, series)) is not None]
    if not scores:
        return Verdict("", _nothing_graded(records.rows), [])
    best = max(scores, key=lambda score: (score.close / score.total, score.median))
    return _judge(gallery.measure, best, scores)


def _nothing_graded(rows: list[dict[str, Any]]) -> str:
    failed = sum(bool(row.get("error")) for row in rows)
    if all(str(row.get("error")).startswith(NOT_ATTACKED) for row in rows):
        return "No update was attacked, so this run says nothing about leaks; the reasons are below."
    if failed == len(rows):
        return "Every attack failed, so this run says nothing about leaks; the reasons are below."
    return "No reconstruction could be graded; the reasons are below."


def _score(gallery: Gallery, series: Series) -> _Score | None:
    rows, measure = gallery.rows(series), gallery.measure
    graded = [(value, place, row) for place, row in rows if (value := measure.value(row)) is not None]
    if not graded:
        return None
    revealed = all(gallery.identity(place) for place, _ in rows)

    # A client may train on the same example in every round; it is one private example all the same.
    def name(place: Place) -> Any:
        return gallery.identity(place) if revealed else place

    return _Score(
        series=series,
        close=len({name(place) for value, place, _ in graded if measure.headline.nearer(value, measure.thresholds.seen)}),
        total=len({name(place) for place, _ in rows}),
        unit=f"private {measure.noun}" if revealed else "reconstruction",
        median=statistics.median(value for value, _, _ in graded),
        graded=len(graded),
        failed=len({place[:2] for place, row in rows if row.get("error")}),
        updates=len({place[:2] for place, _ in rows}),
        unfit=len({place[:2] for place, row in rows if MISFIT in (row.get("flags") or ())}),
        guesses={
            baseline.phrase: mean
            for baseline in measure.baselines
            if (mean := _mean(measure.guess(row, baseline.name) for _, _, row in graded)) is not None
        },
    )


def _judge(measure: Measure, best: _Score, scores: list[_Score]) -> Verdict:
    name, headline = best.series.title, measure.headline
    seen = headline.with_unit(f"{measure.thresholds.seen:g}")
    private = best.unit != "reconstruction"
    nouns = best.unit if best.total == 1 else best.unit + "s"
    details = [_beside_baselines(measure, best)]
    if best.failed:
        updates = plural(best.updates, "update")
        details.append(f"{name} failed on {best.failed:,} of {updates}; {measure.nouns} only in those count as not rebuilt.")
    if best.unfit:
        details.insert(0, f"{best.unfit} of {plural(best.updates, 'update')} {_UNFIT}")
    if not best.close and best.unfit:
        told = "What was told of the clients' training is not so: this run does not show that nothing leaks."
        return Verdict("", told, details)
    if not best.close:
        sentence = f"{nouns} rebuilt above {seen}." if private else f"{nouns} came above {seen}."
        return Verdict(f"None of {best.total:,}", sentence, details, leaks=False)
    sentence = f"{nouns} rebuilt above {seen} by {name}." if private else f"{nouns} by {name} came above {seen}."
    others = [f"{s.series.title} {s.close:,}\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}{s.total:,}" for s in scores if s is not best]
    if others:
        details.append(f"Above {seen} by the other attacks: {enumerated(others)}.")
    return Verdict(f"{best.close:,} of {best.total:,}", sentence, details, leaks=True)


def _beside_baselines(measure: Measure, best: _Score) -> str:
    headline = measure.headline

    def said(value: float) -> str:
        return headline.with_unit(figure(value, headline.decimals))

    start = "Median" if best.close else f"{best.series.title} came nearest: median"
    text = f"{start} {said(best.median)} over {plural(best.graded, 'reconstruction')}"
    for number, (phrase, value) in enumerate(best.guesses.items()):
        text += f", {phrase} {said(value)}" if number else f"; guessing {phrase} instead scores {said(value)}"
    beaten = all(headline.nearer(best.median, guess) for guess in best.guesses.values())
    return text + ("." if beaten else ": the attack is not above a guess that saw no update.")


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
