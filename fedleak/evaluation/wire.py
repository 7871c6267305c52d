"""Grades as a Flower ``MetricRecord`` and back: grading runs on the client, and only metrics leave it.

A record holds one list for each field of :class:`~fedleak.evaluation.grade.ImageGrade`. It knows no ``None``: a missing
number travels as NaN, a missing index, label or answer as -1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from flwr.app import MetricRecord

from fedleak.errors import ReplyError
from fedleak.evaluation.grade import ImageGrade

_INDICES: Final = ("image", "matched", "label_restored")
_ANSWERS: Final = ("label_correct", "identified", "identified_features")
_BASELINES: Final = tuple(f"{baseline}_{metric}" for baseline in ("random", "mean") for metric in ("psnr", "ssim", "mse"))
_METRICS: Final = ("psnr", "ssim", "mse", "lpips", "random_lpips", "mean_lpips")  # those that may be missing


def grades_to_record(grades: Sequence[ImageGrade]) -> MetricRecord:
    """Return ``grades`` as a record of lists, one value for each image."""
    record = MetricRecord()
    for name in _INDICES + _ANSWERS:
        record[name] = [-1 if (value := getattr(grade, name)) is None else int(value) for grade in grades]
    for name in _METRICS + _BASELINES:
        record[name] = [math.nan if (value := getattr(grade, name)) is None else float(value) for grade in grades]
    return record


def grades_from_record(record: MetricRecord) -> list[ImageGrade]:
    """Read what :func:`grades_to_record` wrote; keys beside the grades' own are left alone.

    Raises
    ------
    ReplyError
        If a field is missing, the lists differ in length or hold values that no grade has.
    """
    columns = {name: _column(record, name) for name in _INDICES + _ANSWERS + _METRICS + _BASELINES}
    count = len(columns["image"])
    for name, values in columns.items():
        if len(values) != count:
            raise ReplyError(f"the client's grades hold {len(values)} values of '{name}' for {count} images")
    if columns["image"] != list(range(count)):
        raise ReplyError(f"the client's grades are of images {columns['image'][:8]}, expected 0, 1, 2, ... in order")
    return [ImageGrade(**{name: values[index] for name, values in columns.items()}) for index in range(count)]


def _column(record: MetricRecord, name: str) -> list[Any]:
    values = record.get(name)
    kind = float if name in _METRICS + _BASELINES else int
    # The wire has no type for an empty list, so that one passes as either.
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        raise ReplyError(f"the client's grades need '{name}' as a list of {kind.__name__}s, got {values!r:.80}")
    if name in _BASELINES:
        return [_metric(value, name, missing=False) for value in values]
    if name in _METRICS:
        return [_metric(value, name, missing=True) for value in values]
    return [_index(int(value), name) for value in values]


def _metric(value: float, name: str, *, missing: bool) -> float | None:
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
