"""What counts as a picture, and as a number."""

from __future__ import annotations

import pytest

from fedleak.runs.records import Picture, number, read_picture, read_records


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


def test_only_a_whole_png_is_a_picture(tmp_path, lines):
    path = tmp_path / "images" / "a.png"
    lines.picture(path, seed=1)
    whole = path.read_bytes()
    found = read_picture(tmp_path, "images/a.png")
    assert found is not None
    assert (found.width, found.height) == (4, 4)
    for content in (whole[:-10], b"<svg onload=''" + whole[14:], whole[:12] + b"XXXX" + whole[16:], b""):
        path.write_bytes(content)
        assert read_picture(tmp_path, "images/a.png") is None
