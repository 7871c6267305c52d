"""What a run costs the machine that serves it: seconds a round, memory of the server's process, bytes in the run folder."""

from __future__ import annotations

import math
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_LEFT_OUT = frozenset({"summary.json", "report.html", "again", "run.lock"})


def memory() -> Row:
    """Return the memory that this process holds, in bytes: ``resident`` just now, and ``peak`` since it began.

    ``None`` where the system does not tell: ``resident`` outside Linux, both on Windows.
    """
    return {"resident": _resident(), "peak": _peak()}


def _resident() -> int | None:
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _peak() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def disk(folder: Path) -> int:
    """Return the bytes of what a run keeps in its ``folder``.

    Left out are ``summary.json`` and ``report.html``, which are written after and can be made again from the rest,
    ``again/``, which holds results of an attack only until it is done, and ``run.lock``.
    """
    files = (entry for entry in folder.rglob("*") if entry.is_file())
    return sum(entry.stat().st_size for entry in files if entry.relative_to(folder).parts[0] not in _LEFT_OUT)


def resources(rounds: Sequence[Row]) -> Row:
    """Return the costs of a run from the lines of ``rounds.jsonl`` after the initial model's.

    Returns
    -------
    dict
        ``seconds`` of wall time a round without the attacks, and ``attack_seconds`` with only them: ``first``, ``median``,
        ``last`` and ``max``. ``memory`` of the server's process in bytes: ``first`` and ``last`` after those rounds, and
        ``peak``. ``None`` where nothing was measured.
    """
    held = [row["memory"] for row in rounds if isinstance(row.get("memory"), dict)]
    resident = _numbers(held, "resident")
    return {
        "seconds": _spread(_numbers(rounds, "seconds")),
        "attack_seconds": _spread(_numbers(rounds, "attack_seconds")),
        "memory": {
            "first": resident[0] if resident else None,
            "last": resident[-1] if resident else None,
            "peak": max(_numbers(held, "peak"), default=None),
        },
    }


def _spread(values: list[float]) -> Row:
    if not values:
        return dict.fromkeys(("first", "median", "last", "max"))
    return {"first": values[0], "median": statistics.median(values), "last": values[-1], "max": max(values)}


def _numbers(rows: Sequence[Row], key: str) -> list[float]:
    values = [row.get(key) for row in rows]
    return [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
