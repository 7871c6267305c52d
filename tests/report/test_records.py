"""What counts as a picture, and as a number."""

from __future__ import annotations

import pytest

from fedleak.report.records import Picture, number, read_records


@pytest.mark.parametrize(
    ("own", "target", "shown"),
    [
        ((32, 32), 96, (96, 96)),
        ((28, 28), 96, (84, 84)),
        ((96, 96), 96, (96, 96)),
        ((224, 112), 96, (96, 48)),
        ((1000, 1), 96, (96, 1)),
    ],
)
def test_display_size(own, target, shown):
    assert Picture(b"", *own).display_size(target) == shown


def test_truth_values_and_nan_are_no_numbers():
    assert [number(value) for value in (True, float("nan"), "3", None, 3, 2.5)] == [None, None, None, None, 3.0, 2.5]


def test_a_torn_manifest_counts_as_missing_and_is_said(make_run):
    folder = make_run()
    (folder / "manifest.json").write_text('{"scenario": {"na')
    records = read_records(folder)
    assert records.manifest == {}
    assert records.damaged == ("manifest.json could not be read; it counts as missing here.",)


def test_leakage_is_computed_where_the_summary_is_missing(make_run):
    folder = make_run()
    whole = read_records(folder).leakage
    (folder / "summary.json").unlink()
    assert whole
    assert read_records(folder).leakage == whole
