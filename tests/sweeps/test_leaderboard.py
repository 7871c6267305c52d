"""One page out of many runs: finished ones only, by threat model, with links that lead to their reports."""

import json
import shutil
from urllib.parse import unquote

import pytest

import fedleak
from fedleak.errors import ScenarioError
from fedleak.experiment import run as api
from fedleak.scenario.schema import parse_scenario


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Four finished runs: two that differ in the seed alone, one of another threat model, one that is defended."""
    folder = tmp_path_factory.mktemp("runs")
    base = {
        "name": "x",
        "data": {"source": "samples", "image_size": 16},
        "model": {"name": "mlp", "hidden": [8]},
        "federation": {"clients": 2, "rounds": 1},
        "attacks": [{"name": "closed-form"}],
    }
    several = {
        "seed 1": {},
        "seed 2": {"seed": 2, "attacks": [{"name": "closed-form"}, {"name": "inverting-gradients", "iterations": 1}]},
        "labels": {"threat": {"preset": "labels-known"}},
        "noise": {"defenses": [{"name": "clipping", "max_norm": 1.0}, {"name": "gaussian-noise", "std": 0.1}]},
    }
    for name, change in several.items():
        api.run(parse_scenario(base | change), out=folder / name, device="cpu")
    return folder


def test_runs_that_differ_in_the_seed_alone_are_one_line(runs, tmp_path):
    board = fedleak.leaderboard([runs / name for name in ("seed 1", "seed 2", "labels", "noise")], tmp_path / "a" / "board.html")
    found = [(line.first["threat"], line.first["defense"], line.first["attack"], len(line.rows)) for line in board.lines]
    assert found == [
        ("local-training-known", "none", "closed-form", 2),
        ("local-training-known", "none", "inverting-gradients", 1),
        ("labels-known", "none", "closed-form", 1),
        ("local-training-known", "clipping max_norm=1 + gaussian-noise std=0.1", "closed-form", 1),
    ]
    assert board.lines[0].attacked.gain.seeds == 2
    page = board.page.read_text()
    assert page.index("local-training-known") < page.index("labels-known</h2>")
    assert "2 attacks in 4 finished runs" in page
    assert "iterations=1" in page
    assert "built-in method" not in page
    for shown in ("samples", "16 px", "mlp", "hidden=8", "fedsgd, 2 clients"):
        assert shown in page


def test_an_attack_with_other_parameters_is_another_line(runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs / "seed 1", other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["scenario"] |= {"seed": 3, "attacks": [{"name": "closed-form", "labels": "idlg"}]}
    manifest["digest"] = parse_scenario(manifest["scenario"]).digest
    (other / "manifest.json").write_text(json.dumps(manifest))
    board = fedleak.leaderboard([runs / "seed 1", other], tmp_path / "board.html")
    assert [line.first["parameters"] for line in board.lines] == [{}, {"labels": "idlg"}]


def test_links_lead_to_the_reports(runs, tmp_path):
    board = fedleak.leaderboard([runs / "seed 1"], tmp_path / "deep" / "board.html")
    href = board.lines[0].rows[0]["report"]
    assert f'href="{href}"' in board.page.read_text()
    assert (board.page.parent / unquote(href)).resolve() == (runs / "seed 1" / "report.html").resolve()


def test_a_sweeps_folder_stands_for_its_runs_and_a_run_named_twice_counts_once(runs, tmp_path):
    sweep = tmp_path / "sweep"
    (sweep / "cells").mkdir(parents=True)
    (sweep / "sweep.json").write_text(json.dumps({"cells": [{"cell": name} for name in ("a", "b", "started", "not-started")]}))
    shutil.copytree(runs / "seed 1", sweep / "cells" / "a")
    shutil.copytree(runs / "noise", sweep / "cells" / "b")
    shutil.copytree(runs / "labels", sweep / "cells" / "of-an-older-file")
    (sweep / "cells" / "started").mkdir()
    board = fedleak.leaderboard([sweep, sweep / "cells" / "a"], tmp_path / "board.html")
    assert [len(line.rows) for line in board.lines] == [1, 1]


def test_unfinished_runs_are_left_out_and_named(runs, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(runs / "seed 2", half)
    (half / "summary.json").unlink()
    board = fedleak.leaderboard([runs / "seed 1", half], tmp_path / "board.html")
    assert board.unfinished == ["half"]
    assert "1 unfinished run left out" in board.page.read_text()
    assert "half" in board.page.read_text()
    with pytest.raises(ScenarioError, match=r"no finished run with an attack in these folders; 1 unfinished"):
        fedleak.leaderboard([half], tmp_path / "none.html")
    assert not (tmp_path / "none.html").exists()


def test_what_is_no_run_is_refused_with_one_line(runs, tmp_path):
    with pytest.raises(ScenarioError, match="no run folder and no sweep's") as refused:
        fedleak.leaderboard([runs / "seed 1", tmp_path], tmp_path / "board.html")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "board.html").exists()


def test_hostile_text_stays_text(runs, tmp_path):
    hostile = "</td><script>pwn()</script>\x1b[31m"
    bad = tmp_path / "bad"
    shutil.copytree(runs / "noise", bad)
    manifest = json.loads((bad / "manifest.json").read_text())
    manifest["scenario"]["model"]["name"] = hostile
    manifest["scenario"]["defenses"][0]["name"] = hostile
    manifest["digest"] = parse_scenario(manifest["scenario"]).digest
    (bad / "manifest.json").write_text(json.dumps(manifest))
    rows = (bad / "reconstructions.jsonl").read_text().replace('"closed-form"', json.dumps(hostile))
    (bad / "reconstructions.jsonl").write_text(rows)
    page = fedleak.leaderboard([bad], tmp_path / "board.html").page.read_text()
    assert page.count("<script>") == 1
    assert "&lt;/td&gt;&lt;script&gt;pwn()" in page
    assert "\x1b" not in page
