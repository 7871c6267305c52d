"""Grades as a Flower ``MetricRecord`` and back: grading runs on the client, and only metrics leave it.

A record holds one list for each field of :class:`~fedleak.evaluation.grade.Grade`, and one for each figure: ``metrics.NAME`` of
the reconstructions, ``baseline.GUESS.NAME`` of the guesses. It knows no ``None``: a missing number travels as NaN, a missing
index, label or answer as -1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from flwr.app import MetricRecord

from fedleak.errors import ReplyError
from fedleak.evaluation.grade import Figures, Grade
from fedleak.modalities.base import Measure

_INDICES: Final = ("example", "matched", "label_restored")
_ANSWERS: Final = ("label_correct", "identified", "identified_features")


def grades_to_record(grades: Sequence[Grade], measure: Measure) -> MetricRecord:
    """Return ``grades`` as a record of lists, one value for each example; an optional figure that none has is left out."""
    record = MetricRecord()
    for name in _INDICES + _ANSWERS:
        record[name] = [-1 if (value := getattr(grade, name)) is None else int(value) for grade in grades]
    for key, guess, name in _columns(measure):
        values = [(grade.metrics if guess is None else grade.baseline[guess]).get(name, math.nan) for grade in grades]
        if not measure.figure(name).optional or not all(map(math.isnan, values)):
            record[key] = values
    return record


def grades_from_record(record: MetricRecord, measure: Measure) -> list[Grade]:
    """Read what :func:`grades_to_record` wrote; keys beside the grades' own are left alone.

    Raises
    ------
    ReplyError
        If a field is missing, the lists differ in length or hold values that no grade has.
    """
    columns = {name: _indices(record, name) for name in _INDICES + _ANSWERS}
    figures: dict[tuple[str | None, str], list[float | None]] = {}
    for key, guess, name in _columns(measure):
        if key in record or not measure.figure(name).optional:
            figures[guess, name] = _numbers(record, key, missing=guess is None)
    count = len(columns["example"])
    named = {**columns, **{f"{guess or 'metrics'}.{name}": values for (guess, name), values in figures.items()}}
    for name, values in named.items():
        if len(values) != count:
            raise ReplyError(f"the client's grades hold {len(values)} values of '{name}' for {count} {measure.nouns}")
    if columns["example"] != list(range(count)):
        raise ReplyError(f"the client's grades are of {measure.nouns} {columns['example'][:8]}, expected 0, 1, 2, ... in order")

    def row(guess: str | None, index: int) -> Figures:
        found = ((name, values[index]) for (whose, name), values in figures.items() if whose == guess)
        return {name: value for name, value in found if value is not None}

    return [
        Grade(
            **{name: values[index] for name, values in columns.items()},
            metrics=row(None, index),
            baseline={baseline.name: row(baseline.name, index) for baseline in measure.baselines},
        )
        for index in range(count)
    ]


def _columns(measure: Measure) -> Iterator[tuple[str, str | None, str]]:
    """Yield the record's key, the baseline or ``None`` for the reconstruction, and the figure."""
    for figure in measure.figures:
        yield f"metrics.{figure.name}", None, figure.name
        for baseline in measure.baselines:
            yield f"baseline.{baseline.name}.{figure.name}", baseline.name, figure.name


def _numbers(record: MetricRecord, name: str, *, missing: bool) -> list[float | None]:
    return [_number(value, name, missing=missing) for value in _list(record, name, float)]


def _indices(record: MetricRecord, name: str) -> list[Any]:
    return [_index(int(value), name) for value in _list(record, name, int)]


def _list(record: MetricRecord, name: str, kind: type) -> list[Any]:
    values = record.get(name)
    # The wire has no type for an empty list, so that one passes as either.
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        raise ReplyError(f"the client's grades need '{name}' as a list of {kind.__name__}s, got {values!r:.80}")
    return values


def _number(value: float, name: str, *, missing: bool) -> float | None:
    if math.isnan(value) and missing:
        return None
    if not math.isfinite(value):
        raise ReplyError(f"the client's grades hold {value} as '{name}', expected a finite number")
    return value


def _index(value: int, name: str) -> int | bool | None:
    if value < -1 or (name in _ANSWERS and value > 1):
        expected = "-1 (unknown), 0 or 1" if name in _ANSWERS else "-1 (none) or an index from 0"
        raise ReplyError(f"the client's grades hold {value} as '{name}', expected {expected}")
    if value == -1:
        return None
    return bool(value) if name in _ANSWERS else value
