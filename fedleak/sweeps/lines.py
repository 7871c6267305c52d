"""The lines of a sweep's table and of the leaderboard: one for each setting, defense and attack, over all seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fedleak.modalities.base import Measure
from fedleak.modalities.find import measure_of
from fedleak.sweeps.verdicts import Attacked, attacked

Row = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One attack under one defense in one setting.

    Attributes
    ----------
    rows : list of dict
        Those of all seeds.
    attacked : Attacked or None
        Gain with its interval; ``None`` if no example was returned or attacked.
    """

    rows: list[Row]
    attacked: Attacked | None

    @property
    def measure(self) -> Measure:
        """Of the examples' modality."""
        return measure_of(self.rows)

    @property
    def first(self) -> Row:
        """One of the rows, for what all have in common."""
        return self.rows[0]

    def mean(self, key: str) -> float | None:
        """Return the mean of a figure over the seeds that have it."""
        return _mean(row.get(key) for row in self.rows)

    def figure(self, name: str) -> float | None:
        """Return the mean of one of the measure's figures over the seeds that have it."""
        return _mean((row.get("metrics") or {}).get(name) for row in self.rows)

    def guess(self, name: str) -> float | None:
        """Return the mean of a baseline's headline over the seeds that have it."""
        return _mean((row.get("baseline") or {}).get(name) for row in self.rows)

    def most(self, key: str) -> float | None:
        """Return the largest value of a figure."""
        return max((row[key] for row in self.rows if row.get(key) is not None), default=None)

    def total(self, key: str) -> int:
        """Return the sum of a count."""
        return sum(row[key] for row in self.rows if row.get(key) is not None)


def figures(line: Line) -> Row:
    """Return the headline of a line, its best example's and each guess's, and the figures beside it, as tables show them."""
    measure = line.measure
    return {
        "headline": line.figure(measure.headline.name),
        "best": line.most("best"),
        "guesses": [line.guess(baseline.name) for baseline in measure.baselines],
        "beside": [line.figure(one.name) for one in measure.beside if not one.optional],
    }


def lines(rows: Iterable[Row], key: Callable[[Row], Hashable] | None = None) -> list[Line]:
    """Return the rows of equal ``key`` as lines, in the order of first appearance; rows without an attack are left out.

    Parameters
    ----------
    rows : iterable of dict
        As in ``sweep.jsonl``.
    key : callable, optional
        What a line's rows have in common; setting, defense and attack by default.
    """
    groups: dict[Hashable, list[Row]] = {}
    for row in rows:
        if row.get("attack") is not None:
            groups.setdefault((key or _key)(row), []).append(row)
    return [Line(members, _only(attacked(members))) for members in groups.values()]


def _key(row: Row) -> Hashable:
    return row["setting"], row["defense"], row["attack"]


def _only(found: Sequence[Attacked]) -> Attacked | None:
    return found[0] if found else None


def _mean(values: Iterable[float | None]) -> float | None:
    found = [float(value) for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(found) if found else None
