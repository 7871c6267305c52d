"""Which labels were read off the updates, and how many of them the clients say are right."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]


def summarise(rows: Iterable[Row]) -> Row | None:
    """Return what the lines of ``inferences.jsonl`` say of labels; ``None`` if no update was read.

    Returns
    -------
    dict
        ``updates`` read and ``failures``, with the first ``failure``; ``rules`` by how often each read one; ``right``, the mean
        share of labels that are right as counts, in [0, 1], over the updates of which clients told; ``counts`` of the labels
        read over all updates, by class index.
    """
    read = [row["labels"] for row in rows if row.get("labels")]
    if not read:
        return None
    good = [one for one in read if one["error"] is None]
    shares = [one["right"] for one in good if one.get("right") is not None]
    counts = Counter(label for one in good for label in one["labels"])
    return {
        "updates": len(good),
        "failures": len(read) - len(good),
        "failure": next((one["error"] for one in read if one["error"]), None),
        "rules": dict(Counter(one["rule"] for one in good)),
        "right": statistics.fmean(shares) if shares else None,
        "counts": {str(label): counts[label] for label in sorted(counts)},
    }
