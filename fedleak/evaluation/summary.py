"""From the lines of ``reconstructions.jsonl`` to the ``leakage`` list of ``summary.json``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from fedleak.modalities.base import Measure
from fedleak.modalities.find import measure_of

Row = dict[str, Any]


def summarise(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return one entry for each attack, chain of defenses and threat model, in the order of first appearance.

    Parameters
    ----------
    rows : iterable of dict
        One for each true example; one with ``example`` null and an ``error`` for an update whose attack failed. ``seconds``
        and ``cpu_seconds`` are those of the whole update, repeated on each of its rows.

    Returns
    -------
    list of dict
        ``examples`` counts the graded examples (those with a headline figure), ``failures`` the updates that came to nothing.
        ``metrics`` has mean, median, min and max of each of the measure's figures, and ``baseline`` each guess's means over
        the graded examples. ``seconds`` and ``cpu_seconds`` are totals that count each update once. A mean is over the examples
        that have the figure; a value is ``None`` where there is nothing to average. ``success`` is the share of all rows
        that are clearly rebuilt, those that came to nothing among them. ``identification`` is by what pairing costs,
        ``identification_features`` by the features of the model under attack. ``label_counts`` is the share of labels
        restored whatever their examples, a mean over updates. All numbers are finite.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["attack"], tuple(row["defenses"]), row["threat"]), []).append(row)
    return [_entry(attack, defenses, threat, members) for (attack, defenses, threat), members in groups.items()]


def _entry(attack: str, defenses: Sequence[str], threat: str, rows: list[Row]) -> dict[str, Any]:
    measure = measure_of(rows)
    headline = measure.headline
    graded = [row for row in rows if _finite([measure.value(row)])]
    updates = {_update(row): row for row in rows}
    failed = {_update(row) for row in rows if row["example"] is None}
    asked = [
        figure.name
        for figure in measure.figures
        if not figure.optional or _finite(measure.value(row, figure.name) for row in graded)
    ]
    clear = sum(headline.nearer(value, measure.thresholds.clear) for value in _finite(measure.value(row) for row in graded))
    return {
        "attack": attack,
        "modality": measure.modality,
        "defenses": list(defenses),
        "threat": threat,
        "examples": len(graded),
        "failures": len(failed),
        "metrics": {name: _spread(measure.value(row, name) for row in graded) for name in asked},
        "success": clear / len(rows),
        "label_accuracy": _mean(row["label_correct"] for row in rows),
        "label_counts": _mean(row.get("label_counts") for row in updates.values()),
        "identification": _mean(row["identified"] for row in rows),
        "identification_features": _mean(row.get("identified_features") for row in rows),
        "seconds": math.fsum(_finite(row["seconds"] for row in updates.values())),
        "cpu_seconds": math.fsum(_finite(row["cpu_seconds"] for row in updates.values())),
        "baseline": {guess.name: _guess(measure, graded, guess.name, asked) for guess in measure.baselines},
    }


def _update(row: Row) -> tuple[Any, ...]:
    """Return what the rows of one attacked update have in common: the client, or the clients whose sum it is."""
    return row["round"], tuple(row.get("cohort") or (row["client"],))


def _guess(measure: Measure, rows: list[Row], guess: str, asked: Iterable[str]) -> dict[str, float | None]:
    return {name: _mean(measure.guess(row, guess, name) for row in rows) for name in asked}


def _spread(values: Iterable[float | None]) -> dict[str, float | None]:
    found = _finite(values)
    return {
        "mean": _mean(found),
        "median": statistics.median(found) if found else None,
        "min": min(found, default=None),
        "max": max(found, default=None),
    }


def _finite(values: Iterable[float | None]) -> list[float]:
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = _finite(values)
    return statistics.fmean(numbers) if numbers else None
