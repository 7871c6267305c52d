"""From a run folder to rows: gains above the better guess, image by image."""

import json
import math
import shutil

import pytest

from fedleak.defenses.base import Defense, defenses
from fedleak.errors import ScenarioError
from fedleak.experiment import run as api
from fedleak.modalities.find import measure
from fedleak.scenario.schema import parse_scenario
from fedleak.sweeps.rows import _knowledge, run_rows


def graded(psnr, mean_image=12.0, random=8.0):
    return {"metrics": {"psnr": psnr}, "baseline": {"mean_image": {"psnr": mean_image}, "random": {"psnr": random}}}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (graded(20.0), 8.0),
        (graded(20.0, random=15.0), 5.0),  # of the better guess
        (graded(10.0), -2.0),
        (graded(99.0), 18.0),  # fully seen is fully seen
        (graded(99.0, mean_image=35.0), 0.0),
        (graded(20.0, mean_image=None), 12.0),
        (graded(None), None),
        (graded(math.nan), None),
        ({"metrics": {"psnr": 20.0}, "baseline": {}}, None),
        ({}, None),
    ],
)
def test_gain_is_above_the_better_guess_and_cut_where_the_image_is_seen(row, expected):
    assert measure().thresholds.seen == 30.0
    assert measure().gain(row) == expected


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    scenario = parse_scenario(
        {
            "name": "rows",
            "data": {"source": "samples", "image_size": 16},
            "model": {"name": "mlp", "hidden": [8]},
            "federation": {"clients": 2, "rounds": 2},
            "threat": {"preset": "labels-known", "defense_known": True},
            "attacks": [{"name": "closed-form", "clients": 1}, {"name": "inverting-gradients", "title": "ig", "iterations": 1}],
            "defenses": [{"name": "gaussian-noise", "std": 0.01}],
        }
    )
    return api.run(scenario, out=tmp_path_factory.mktemp("rows") / "run", device="cpu").path


def test_one_row_for_each_attack_with_all_its_images(run):
    exact, cosine = run_rows(run)
    assert [exact["attack"], cosine["attack"]] == ["closed-form", "ig"]
    assert (exact["graded"], cosine["graded"]) == (2, 4)
    assert len(exact["examples"]) == 2
    assert exact["gain"] == pytest.approx(sum(image["gain"] for image in exact["examples"]) / 2)
    lines = [json.loads(line) for line in (run / "reconstructions.jsonl").read_text().splitlines()]
    psnr = [line["metrics"]["psnr"] for line in lines if line["attack"] == "closed-form"]
    assert exact["metrics"]["psnr"] == pytest.approx(sum(psnr) / 2)
    assert exact["best"] == max(psnr)
    assert (exact["threat"], exact["defense_known"], exact["knows_defense"]) == ("labels-known", True, False)
    assert [exact[key] for key in ("model", "data", "batch", "protocol", "rounds")] == ["mlp", "samples", 1, "fedsgd", 2]
    assert exact["bytes"] > 10_000
    assert exact["seconds"] > 0
    assert cosine["parameters"] == {"iterations": 1}
    assert exact["accuracy"] is None
    assert json.loads(json.dumps(exact, allow_nan=False)) == exact


def test_the_same_private_image_has_the_same_name_in_both_rounds(run):
    exact, cosine = run_rows(run)
    names = {image["name"] for image in cosine["examples"]}
    assert {image["name"] for image in exact["examples"]} <= names
    truths = {path.read_bytes() for path in (run / "images").glob("*-truth-*.png")}
    assert len(names) == len(truths)


def test_failed_updates_and_replies_are_told_apart(run, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("manifest.json", "rounds.jsonl"):
        (copy / name).write_text((run / name).read_text())
    rows = [json.loads(line) for line in (run / "reconstructions.jsonl").read_text().splitlines()]
    rows[0] |= {"metrics": {}, "example": None, "error": "no linear layer", "baseline": {}, "truth": None}
    rows[1] |= {"metrics": {}, "example": None, "error": "invalid reply", "flags": ["invalid-reply"], "baseline": {}}
    (copy / "reconstructions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {row["attack"]: row for row in run_rows(copy)}
    attack = rows[0]["attack"]
    assert found[attack]["failures"] == 1
    assert found[attack]["failure"] == "no linear layer"
    assert [image["gain"] is None for image in found[attack]["examples"]].count(True) == 1
    assert sum(len(row["examples"]) for row in found.values()) == len(rows) - 1


def test_accuracy_epsilon_and_costs_are_the_runs_own(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    summary = json.loads((copy / "summary.json").read_text())
    assert run_rows(copy)[0]["bytes"] == summary["utility"]["cost"]["bytes"]
    summary["privacy"] = {"epsilon": 3.5, "by_client": {"0": 3.5}}
    (copy / "summary.json").write_text(json.dumps(summary))
    rounds = [json.loads(line) for line in (copy / "rounds.jsonl").read_text().splitlines()]
    for number, line in enumerate(rounds):
        line["accuracy"] = 0.25 * number
    (copy / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rounds))
    [row, _] = run_rows(copy)
    assert (row["epsilon"], row["accuracy"]) == (3.5, 0.5)


def test_a_run_that_attacked_nothing_has_one_row(run, tmp_path):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["scenario"]["attacks"] = []
    manifest["digest"] = parse_scenario(manifest["scenario"]).digest
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    [row] = run_rows(tmp_path)
    assert row["attack"] is None
    assert row["error"] is None


def test_no_run_folder_is_refused(tmp_path):
    with pytest.raises(ScenarioError, match="not a run folder"):
        run_rows(tmp_path)
    (tmp_path / "manifest.json").write_text('{"scenario": {"nam": 3}, "digest": "", "engine": "inprocess"}')
    with pytest.raises(ScenarioError, match=r"manifest\.json: nam: unknown key"):
        run_rows(tmp_path)


@pytest.mark.parametrize(
    ("attack", "defended", "knows"),
    [
        ({"name": "adaptive"}, ["clipping"], True),
        ({"name": "adaptive"}, ["clipping", "new"], False),
        ({"name": "inverting-gradients"}, ["clipping"], False),
        ({"name": "cohort-difference"}, ["secagg-view"], True),
        ({"name": "cohort-difference"}, ["secagg-view", "clipping"], False),
        ({"name": "cohort-difference", "attack": "adaptive"}, ["secagg-view", "clipping"], True),
        ({"name": "cohort-difference", "attack": "adaptive"}, ["secagg-view", "new"], False),
        ({"name": "nobodys"}, ["clipping"], False),
    ],
)
def test_an_attacker_knows_the_defenses_only_where_it_goes_through_each(attack, defended, knows, monkeypatch):
    """A defense without an adaptive attacker must never be said to block, and only who knows it can show that."""
    monkeypatch.setitem(defenses._plugins, "new", type("New", (Defense,), {"name": "new"}))
    table = {"name": "x", "threat": {"preset": "surrogate-data", "defense_known": True}, "attacks": [attack]}
    scenario = parse_scenario(table | {"defenses": [{"name": name} for name in defended]})
    assert _knowledge(scenario.attacks[0], scenario)["knows_defense"] is knows


def test_canaries_and_membership_stand_in_every_row(run, tmp_path):
    shutil.copytree(run, folder := tmp_path / "run")
    (plain,) = {row["empirical_epsilon"] for row in run_rows(folder)}
    assert plain is None
    own = {str(i): {str(j): float(i == j) + 0.1 * (i - j) for j in range(4)} for i in range(4)}
    (folder / "canaries.jsonl").write_text(json.dumps({"round": 1, "updates": own, "model": None}) + "\n")
    candidates = [{"id": str(n), "member": n < 3, "score": -float(n), "called": None} for n in range(6)]
    tested = {"test": "t", "others_from": "public images", "error": None, "candidates": candidates}
    read = {"round": 1, "client": 0, "kind": "gradient", "membership": [tested]}
    (folder / "inferences.jsonl").write_text(json.dumps(read) + "\n")
    for row in run_rows(folder):
        assert row["empirical_low"] < row["empirical_epsilon"] < row["empirical_high"]
        assert (row["membership_auc"], row["membership_tpr"]) == (1, 1)
