"""From the lines of ``rounds.jsonl`` to what the model was worth, what it cost the clients, and what privacy it left them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]

COSTS = ("seconds", "cpu_seconds", "bytes", "coded_bytes")
"""What a row says of each client: wall and CPU seconds of training and defenses, bytes as sent, bytes in a plain coding."""


def utility(rounds: Sequence[Row]) -> Row:
    """Return the ``utility`` of ``summary.json``.

    Parameters
    ----------
    rounds : sequence of dict
        The lines of ``rounds.jsonl`` after the initial model's.

    Returns
    -------
    dict
        ``accuracy`` in [0, 1] and ``loss`` in nats, in the rounds that ``rounds`` names, where they were measured; ``cost``, the
        mean of each of :data:`COSTS` over clients and rounds, ``None`` where nothing was measured.
    """
    return {
        "accuracy": [row["accuracy"] for row in rounds if row["accuracy"] is not None],
        "loss": [row["loss"] for row in rounds if row["loss"] is not None],
        "rounds": [row["round"] for row in rounds if row["accuracy"] is not None],
        "cost": _means([costs for row in rounds for costs in _table(row, "by_client").values()]),
    }


def epsilon_by_round(rounds: Iterable[Row]) -> dict[int, float]:
    """Return the largest epsilon of any client so far, for each round whose row holds one."""
    found: dict[int, float] = {}
    highest = -math.inf
    for row in rounds:
        values = [float(value) for value in _table(row, "epsilon").values() if _number(value)]
        if values and _number(row.get("round")):
            highest = max(highest, *values)
            found[int(row["round"])] = highest
    return found


def by_client(rounds: Iterable[Row]) -> dict[str, Row]:
    """Return for each client the number of ``rounds`` that it took part in and the means of its :data:`COSTS`."""
    found: dict[str, list[Row]] = {}
    for row in rounds:
        for client, costs in _table(row, "by_client").items():
            found.setdefault(str(client), []).append(costs)
    ordered = sorted(found, key=lambda client: (len(client), client))
    return {client: {"rounds": len(found[client]), **_means(found[client])} for client in ordered}


def _means(rows: Sequence[Any]) -> Row:
    means: Row = {}
    for key in COSTS:
        values = [float(row[key]) for row in rows if isinstance(row, dict) and _number(row.get(key))]
        means[key] = statistics.fmean(values) if values else None
    return means


def _table(row: Row, key: str) -> Row:
    value = row.get(key)
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
