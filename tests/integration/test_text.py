"""Passages through the whole of it: federation, curious server, grading, report, the same attack again."""

import json

import pytest

import fedleak
from fedleak.scenario.schema import Scenario

TABLE = {
    "name": "text",
    "seed": 1,
    "data": {"source": "text-samples", "max_tokens": 200},
    "model": {"name": "bert", "depth": 1},
    "federation": {"clients": 2, "rounds": 1},
    "attacks": [{"name": "closed-form"}],
}


def rows(folder):
    return [json.loads(line) for line in (folder / "reconstructions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_every_passage_is_read_and_shown(tmp_path, isolation):
    scenario = Scenario.model_validate(TABLE | {"server": {"isolation": isolation}})
    fedleak.run(scenario, out=tmp_path / "run")
    found = rows(tmp_path / "run")
    assert len(found) == 2
    for row in found:
        assert row["modality"] == "text"
        assert row["metrics"]["tokens"] == 100
        assert row["metrics"]["exact"] == 1
        assert row["label_correct"]
        assert row["baseline"]["frequent"]["tokens"] < 50
        truth, rebuilt = (json.loads((tmp_path / "run" / row[key]).read_text()) for key in ("truth", "exhibit"))
        assert truth == rebuilt
        assert len(truth["text"]) > 50
    page = (tmp_path / "run" / "report.html").read_text()
    assert "2 of 2</em> private passages rebuilt above 95 %" in page


@pytest.mark.parametrize(
    "defense",
    [{"name": "gaussian-noise", "std": 1e-5}, {"name": "clipping", "max_norm": 1e-3}, {"name": "gradient-pruning", "ratio": 0.5}],
)
def test_defenses_of_the_update_run_on_it(tmp_path, defense):
    fedleak.run(Scenario.model_validate(TABLE | {"defenses": [defense]}), out=tmp_path / "run")
    assert all(row["error"] is None for row in rows(tmp_path / "run"))


def test_fedavg_with_secure_aggregation_leaves_a_sum_that_the_closed_form_does_not_read(tmp_path):
    federation = {"clients": 3, "rounds": 1, "protocol": "fedavg"}
    table = TABLE | {"federation": federation, "defenses": [{"name": "secure-aggregation"}], "local": {"learning_rate": 0.01}}
    fedleak.run(Scenario.model_validate(table), out=tmp_path / "run")
    assert all("reads one passage, but" in row["error"] for row in rows(tmp_path / "run"))


def test_two_passages_an_update_are_a_row_that_says_so_and_labels_are_not_guessed(tmp_path):
    fedleak.run(Scenario.model_validate(TABLE | {"local": {"batch_size": 2}}), out=tmp_path / "run")
    assert all(row["error"] == "the closed form reads one passage, but 2 are behind the update" for row in rows(tmp_path / "run"))
    read = [json.loads(line) for line in (tmp_path / "run" / "inferences.jsonl").read_text().splitlines()]
    assert all("one passage at a time" in row["labels"]["error"] for row in read)
    assert all(row["distance"]["error"] is None for row in read)
