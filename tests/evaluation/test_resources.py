"""What a run says of its own costs."""

from __future__ import annotations

import sys

import pytest

from fedleak.evaluation.resources import disk, memory, resources


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_follows_what_is_held():
    before = memory()
    held = bytearray(b"\1") * (64 * 2**20)
    after = memory()
    assert 60 * 2**20 < after["resident"] - before["resident"] < 80 * 2**20
    del held
    assert memory()["resident"] < before["resident"] + 20 * 2**20
    assert memory()["peak"] >= after["resident"] - 2**20


def test_a_run_is_summed_up():
    rounds = [
        {"round": at, "seconds": float(at), "attack_seconds": 0.0, "memory": {"resident": 100 * at, "peak": 1000 - at}}
        for at in (1, 2, 9)
    ]
    assert resources(rounds) == {
        "seconds": {"first": 1.0, "median": 2.0, "last": 9.0, "max": 9.0},
        "attack_seconds": {"first": 0.0, "median": 0.0, "last": 0.0, "max": 0.0},
        "memory": {"first": 100, "last": 900, "peak": 999},
    }


def test_rows_of_earlier_versions_have_none():
    nothing = {"first": None, "median": None, "last": None, "max": None}
    found = resources([{"round": 1}, {"round": 2, "memory": {"resident": None, "peak": None}}])
    assert found == {"seconds": nothing, "attack_seconds": nothing, "memory": {"first": None, "last": None, "peak": None}}


def test_disk_counts_files_in_folders(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"123")
    (tmp_path / "c").write_bytes(b"4567")
    assert disk(tmp_path) == 7


def test_disk_is_the_same_before_and_after_the_report_and_while_an_attack_is_unfinished(tmp_path):
    (tmp_path / "rounds.jsonl").write_bytes(b"123")
    (tmp_path / "again").mkdir()
    for name in ("report.html", "summary.json", "run.lock", "again/a0-all.safetensors"):
        (tmp_path / name).write_bytes(b"passing")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "again").write_bytes(b"45")
    assert disk(tmp_path) == 5
