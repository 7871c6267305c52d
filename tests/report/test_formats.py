"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from fedleak.report import formats


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        (formats.decimals, 41.25, "41.2"),
        (formats.decimals, -3.0, "−3.0"),
        (formats.decimals, math.inf, "∞"),
        (formats.decimals, None, "–"),
        (formats.percent, 0.925, "92 %"),
        (formats.percent, "0.9", "–"),
        (formats.count, 19438, "19,438"),
        (formats.duration, 0.123, "0.12"),
        (formats.duration, 12.34, "12.3"),
        (formats.duration, 1234.5, "1,234"),
        (formats.yes_no, False, "no"),
        (formats.yes_no, None, "–"),
        (formats.plain, True, "true"),
        (formats.plain, [1, 3], "1, 3"),
        (formats.plain, 1e-7, "1e-07"),
        (formats.moment, "2025-11-03T09:05:00+00:00", "3 November 2025, 09:05 UTC"),
        (formats.moment, "yesterday", "yesterday"),
        (formats.moment, None, "–"),
        (formats.enumerated, [], "none"),
    ],
)
def test_formats(function, value, expected):
    assert function(value) == expected


def test_class_names():
    names = ["cat", "dog"]
    assert [formats.class_name(label, names) for label in (1, 2, -1, None, True)] == ["dog", "class 2", "class -1", None, None]


def test_sizes_have_a_unit():
    values = (0, 999, 1000, 12_345, 123_456, 5_000_000, 2.5e12, None, float("inf"))
    shown = ["0 B", "999 B", "1.0 kB", "12.3 kB", "123 kB", "5.0 MB", "2500 GB", "–", "–"]
    assert [formats.size(value) for value in values] == shown
