"""What counts as a file to show, and as a number."""

from __future__ import annotations

import pytest

from fedleak.errors import ScenarioError
from fedleak.modalities.image.exhibit import EXHIBIT
from fedleak.runs.records import Shown, number, read_exhibit, read_records


def test_truth_values_and_nan_are_no_numbers():
    assert [number(value) for value in (True, float("nan"), "3", None, 3, 2.5)] == [None, None, None, None, 3.0, 2.5]


def test_a_torn_manifest_is_refused_and_says_what_to_do(make_run):
    folder = make_run()
    (folder / "manifest.json").write_text('{"scenario": {"na')
    with pytest.raises(ScenarioError, match=r"manifest\.json: damaged \(no JSON.*remove it"):
        read_records(folder)
    (folder / "manifest.json").unlink()
    assert read_records(folder).manifest == {}


def test_leakage_is_computed_where_the_summary_is_missing(make_run):
    folder = make_run()
    whole = read_records(folder).leakage
    (folder / "summary.json").unlink()
    assert whole
    assert read_records(folder).leakage == whole


def test_only_a_whole_file_is_shown(tmp_path, lines):
    path = tmp_path / "images" / "a.png"
    lines.picture(path, seed=1)
    whole = path.read_bytes()
    assert read_exhibit(tmp_path, "images/a.png", EXHIBIT) == Shown(EXHIBIT, whole)
    path.write_bytes(whole[:-10])
    assert read_exhibit(tmp_path, "images/a.png", EXHIBIT) is None
    assert read_exhibit(tmp_path / "images", "../images/a.png", EXHIBIT) is None
    assert read_exhibit(tmp_path, None, EXHIBIT) is None
