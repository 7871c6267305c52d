"""The scenario on the page is the scenario of the run."""

from __future__ import annotations

import json
import tomllib

from fedleak.report import asked
from fedleak.report.html import write_report
from fedleak.runs.records import read_records
from fedleak.scenario.schema import parse_scenario


def test_the_scenario_file_gives_the_same_experiment():
    scenario = parse_scenario(
        {
            "name": 'quotes " and \\ and \x7f and ü and 🐸 \n',
            "seed": 7,
            "data": {"source": "folder", "path": "/some/where", "partition": {"name": "dirichlet", "alpha": 0.5}},
            "model": {"name": "mlp", "hidden": [64, 32], "odd key": 1},
            "federation": {"clients": 3, "protocol": "fedavg", "strategy": {"name": "FedAvg", "options": {"a": 1e-7}}},
            "threat": {"preset": "labels-known", "defense_known": True},
            "attacks": [{"name": "dlg", "rounds": [1, 3], "budget_seconds": 2.5}, {"name": "exact", "clients": 2}],
            "defenses": [{"name": "gaussian-noise", "sigma": 1e-3}],
        }
    )
    text = asked.to_toml(json.loads(scenario.to_json()))
    again = parse_scenario(tomllib.loads(text))
    assert again == scenario
    assert again.digest == scenario.digest


def test_empty_lists_survive():
    scenario = parse_scenario({"name": "bare"})
    assert parse_scenario(tomllib.loads(asked.to_toml(json.loads(scenario.to_json())))) == scenario


def test_attack_parameters_and_budget_are_named(make_run):
    spec = {"name": "dlg", "rounds": [1, 3], "budget_seconds": 2.5, "restarts": 4}
    records = read_records(make_run(attacks=[spec]))
    assert asked.plugins(records, "attacks") == [
        asked.Fact("dlg", "", ["restarts = 4", "rounds = 1, 3", "budget = 2.5 CPU seconds an update"])
    ]


def test_knowledge_this_version_does_not_know_still_shows(make_run):
    records = read_records(make_run(manifest={"threat": {"preset": "x", "granted": ["labels", "telepathy"]}}))
    found = {grant.name: grant.granted for grant in asked.grants(records)}
    assert found == {
        "local-training": False,
        "labels": True,
        "batchnorm": False,
        "surrogate": False,
        "defense": False,
        "telepathy": True,
    }


def test_facts_without_a_value_are_left_out(make_run):
    folder = make_run()
    (folder / "manifest.json").unlink()
    assert asked.facts(read_records(folder)) == []


def test_the_verdict_on_any_attack_is_shown_and_may_be_missing(make_run):
    folder = make_run()
    assert asked.identifiability(read_records(folder)) == ""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["identifiability"] = {"verdict": "No attack can be exact: <b>.", "layers": []}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert asked.identifiability(read_records(folder)) == "No attack can be exact: <b>."
    page = write_report(folder).read_text()
    assert "No attack can be exact: &lt;b&gt;." in page
