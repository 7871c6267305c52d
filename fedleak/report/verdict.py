"""The page's first sentence: what leaked, in numbers that the rows bear out."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from fedleak.printable import plural
from fedleak.report.formats import decimals, enumerated
from fedleak.report.gallery import CLOSE_DB, Gallery, Place, Series
from fedleak.runs.records import RunRecords, baseline_psnr, number, rows_of, table


@dataclass(frozen=True)
class Verdict:
    """What leaked: ``count`` and ``sentence`` read as one headline, ``details`` stand below it.

    ``leaks`` says whether any image was rebuilt.
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
    mean_image: float | None
    random: float | None


def verdict(records: RunRecords, gallery: Gallery) -> Verdict:
    """Return the headline of a run, finished or not."""
    if table(records.scenario, "server").get("curious") is False:
        return Verdict("", "The server was not curious: it attacked nothing, so this run says nothing about leaks.", [])
    if records.scenario and not rows_of(records.scenario, "attacks"):
        return Verdict("", "The scenario names no attack, so this run says nothing about leaks.", [])
    if not records.rows:
        return Verdict("", "No attack has returned a result yet.", [])
    scores = [score for series in gallery.series if (score := _score(gallery, series)) is not None]
    if not scores:
        return Verdict("", _nothing_graded(records.rows), [])
    best = max(scores, key=lambda score: (score.close / score.total, score.median))
    return _judge(best, scores)


def _nothing_graded(rows: list[dict[str, Any]]) -> str:
    failed = sum(bool(row.get("error")) for row in rows)
    if failed == len(rows):
        return "Every attack failed, so this run says nothing about leaks; the reasons are below."
    return "No reconstruction could be graded; the reasons are below."


def _score(gallery: Gallery, series: Series) -> _Score | None:
    rows = gallery.rows(series)
    graded = [(psnr, place, row) for place, row in rows if (psnr := number(row.get("psnr"))) is not None]
    if not graded:
        return None
    revealed = all(gallery.identity(place) for place, _ in rows)

    # A client may train on the same image in every round; it is one private image all the same.
    def name(place: Place) -> Any:
        return gallery.identity(place) if revealed else place

    return _Score(
        series=series,
        close=len({name(place) for psnr, place, _ in graded if psnr > CLOSE_DB}),
        total=len({name(place) for place, _ in rows}),
        unit="private image" if revealed else "reconstruction",
        median=statistics.median(psnr for psnr, _, _ in graded),
        graded=len(graded),
        failed=len({place[:2] for place, row in rows if row.get("error")}),
        updates=len({place[:2] for place, _ in rows}),
        mean_image=_mean(baseline_psnr(row, "mean_image") for _, _, row in graded),
        random=_mean(baseline_psnr(row, "random") for _, _, row in graded),
    )


def _judge(best: _Score, scores: list[_Score]) -> Verdict:
    name = best.series.title
    private = best.unit == "private image"
    nouns = best.unit if best.total == 1 else best.unit + "s"
    details = [_beside_baselines(best)]
    if best.failed:
        updates = plural(best.updates, "update")
        details.append(f"{name} failed on {best.failed:,} of {updates}; images only in those count as not rebuilt.")
    if not best.close:
        sentence = f"{nouns} rebuilt above {CLOSE_DB:.0f} dB." if private else f"{nouns} came above {CLOSE_DB:.0f} dB."
        return Verdict(f"None of {best.total:,}", sentence, details, leaks=False)
    sentence = (
        f"{nouns} rebuilt above {CLOSE_DB:.0f} dB by {name}." if private else f"{nouns} by {name} came above {CLOSE_DB:.0f} dB."
    )
    others = [f"{s.series.title} {s.close:,}\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}{s.total:,}" for s in scores if s is not best]
    if others:
        details.append(f"Above {CLOSE_DB:.0f} dB by the other attacks: {enumerated(others)}.")
    return Verdict(f"{best.close:,} of {best.total:,}", sentence, details, leaks=True)


def _beside_baselines(best: _Score) -> str:
    start = "Median" if best.close else f"{best.series.title} came nearest: median"
    text = f"{start} {decimals(best.median)} dB over {plural(best.graded, 'reconstruction')}"
    if best.mean_image is not None:
        text += f"; guessing the mean image instead scores {decimals(best.mean_image)} dB"
    if best.random is not None:
        text += (
            f", random noise {decimals(best.random)} dB"
            if best.mean_image is not None
            else f"; random noise scores {decimals(best.random)} dB"
        )
    known = [value for value in (best.mean_image, best.random) if value is not None]
    return text + (": the attack is not above a guess that saw no update." if known and best.median <= max(known) else ".")


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
