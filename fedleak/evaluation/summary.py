"""From the lines of ``reconstructions.jsonl`` to the ``leakage`` list of ``summary.json``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

CLEAR_DB = 20.0
"""PSNR in dB above which an image counts as clearly rebuilt, as in the field's success rates."""

Row = dict[str, Any]


def summarise(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return one entry for each attack, chain of defenses and threat model, in the order of first appearance.

    Parameters
    ----------
    rows : iterable of dict
        One for each true image; one with ``image`` null and an ``error`` for an update whose attack failed. ``seconds``
        and ``cpu_seconds`` are those of the whole update, repeated on each of its rows.

    Returns
    -------
    list of dict
        ``images`` counts the graded images (those with a PSNR), ``failures`` the updates that came to nothing. PSNR is
        in dB; ``seconds`` and ``cpu_seconds`` are totals that count each update once. A mean is over the images that
        have the metric, a baseline's over the graded images; a value is ``None`` where there is nothing to average.
        ``success`` is the share of all rows above 20 dB, those that came to nothing among them. ``identification`` is by
        pixels, ``identification_features`` by the features of the model under attack. ``label_counts`` is the share of
        labels restored whatever their images, a mean over updates. All numbers are finite.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["attack"], tuple(row["defenses"]), row["threat"]), []).append(row)
    return [_entry(attack, defenses, threat, members) for (attack, defenses, threat), members in groups.items()]


def _entry(attack: str, defenses: Sequence[str], threat: str, rows: list[Row]) -> dict[str, Any]:
    graded = [row for row in rows if _finite([row["psnr"]])]
    updates = {_update(row): row for row in rows}
    failed = {_update(row) for row in rows if row["image"] is None}
    psnr = _finite(row["psnr"] for row in graded)
    return {
        "attack": attack,
        "defenses": list(defenses),
        "threat": threat,
        "images": len(graded),
        "failures": len(failed),
        "psnr": {
            "mean": _mean(psnr),
            "median": statistics.median(psnr) if psnr else None,
            "min": min(psnr, default=None),
            "max": max(psnr, default=None),
        },
        "ssim": {"mean": _mean(row["ssim"] for row in graded)},
        "mse": {"mean": _mean(row["mse"] for row in graded)},
        "lpips": {"mean": _mean(row.get("lpips") for row in graded)},
        "success": sum(value > CLEAR_DB for value in psnr) / len(rows),
        "label_accuracy": _mean(row["label_correct"] for row in rows),
        "label_counts": _mean(row.get("label_counts") for row in updates.values()),
        "identification": _mean(row["identified"] for row in rows),
        "identification_features": _mean(row.get("identified_features") for row in rows),
        "seconds": math.fsum(_finite(row["seconds"] for row in updates.values())),
        "cpu_seconds": math.fsum(_finite(row["cpu_seconds"] for row in updates.values())),
        "baseline": {guess: _baseline(graded, guess) for guess in ("random", "mean_image")},
    }


def _update(row: Row) -> tuple[Any, ...]:
    """Return what the rows of one attacked update have in common: the client, or the clients whose sum it is."""
    return row["round"], tuple(row.get("cohort") or (row["client"],))


def _baseline(rows: list[Row], guess: str) -> dict[str, float | None]:
    scores = [(row["baseline"] or {}).get(guess, {}) for row in rows]
    return {metric: _mean(score.get(metric) for score in scores) for metric in ("psnr", "ssim", "mse", "lpips")}


def _finite(values: Iterable[float | None]) -> list[float]:
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = _finite(values)
    return statistics.fmean(numbers) if numbers else None
