"""What the report's section on what updates tell without an image holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

from fedleak.evaluation.beside import said
from fedleak.evaluation.canaries import OBSERVERS
from fedleak.report import formats
from fedleak.runs.records import RunRecords, number, table

MOST_UPDATES = 48
"""So many updates' labels are listed at most; ``inferences.jsonl`` has all."""


def beside(records: RunRecords, class_names: Sequence[Any]) -> dict[str, Any] | None:
    """Return what the template's section names; ``None`` if nothing was read and there were no canaries."""
    found = records.beside
    if not found:
        return None
    epsilons, privacy = table(found, "empirical_epsilon"), table(records.summary, "privacy")
    canaries = number(table(table(records.scenario, "evaluation"), "canaries").get("count"))
    return {
        "sentences": said(found, privacy),
        "labels": labels(records, class_names),
        "label_count": sum(bool(row.get("labels")) for row in records.inferences),
        "membership": [line for tested in found.get("membership") or () for line in _lines(tested)],
        "others": ", ".join(
            {str(tested["others_from"]): None for tested in found.get("membership") or () if tested["others_from"]}
        ),
        "epsilons": [{"observer": OBSERVERS[name], **one} for name, one in table(epsilons, "observers").items()],
        "promised": number(privacy.get("epsilon")),
        "delta": epsilons.get("delta"),
        "canaries": None if canaries is None else int(canaries),
    }


def labels(records: RunRecords, class_names: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the labels that were read off each update, as counts by class, the first updates only."""
    rows = (row for row in records.inferences if row.get("labels"))
    return [{**_where(row), **_counts(row["labels"], class_names), **_far(row)} for row in islice(rows, MOST_UPDATES)]


def _where(row: dict[str, Any]) -> dict[str, Any]:
    cohort = row.get("cohort")
    client = formats.enumerated([str(one) for one in cohort]) if cohort else str(row.get("client"))
    return {"round": row.get("round"), "client": client, "examples": row.get("examples")}


def _counts(read: dict[str, Any], class_names: Sequence[Any]) -> dict[str, Any]:
    counts = Counter(read.get("labels") or ())
    named = [f"{counts[label]} × {formats.class_name(label, class_names)}" for label in sorted(counts)]
    return {"counts": ", ".join(named), "rule": read.get("rule"), "right": read.get("right"), "error": read.get("error")}


def _far(row: dict[str, Any]) -> dict[str, Any]:
    measured = table(row, "distance")
    return {"ratio": measured.get("ratio"), "farther": measured.get("farther")}


def _lines(tested: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a line for each round, and one over rounds where there are several."""
    lines = [{"test": tested["test"], "when": f"round {one['round']}", **one} for one in tested["rounds"]]
    if tested["over_rounds"] is not None and len(lines) > 1:
        when, called = f"over {len(lines)} rounds", {"called": None, "called_others": None}
        lines.append({"test": tested["test"], "when": when, **called, **tested["over_rounds"]})
    if not lines:
        lines.append({"test": tested["test"], "when": "failed", "failure": tested["failure"]})
    return lines
