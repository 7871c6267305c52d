"""A scenario says what is wrong with it in one line, survives JSON, and its digest names what decides the numbers."""

# ruff: noqa: E501 (a case is a line)
from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fedleak.errors import ScenarioError
from fedleak.scenario.schema import AttackSpec, Scenario, attack_specs, load_scenario, parse_scenario, scenario_from

SCENARIOS = sorted((Path(__file__).parents[2] / "scenarios").glob("*.toml"))
ATTACK = {"name": "dlg"}


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_is_the_same_after_json(path):
    scenario = load_scenario(path)
    assert Scenario.from_json(scenario.to_json()) == scenario
    assert parse_scenario(json.loads(scenario.to_json())).digest == scenario.digest


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sed": 3}, "sed: unknown key; did you mean 'seed'?"),
        ({"rounds": 3}, "rounds: unknown key; did you mean 'federation.rounds'?"),
        ({"data": {"seed": 3}}, "data.seed: unknown key; did you mean 'seed'?"),
        ({"data": {"shard_sise": 3}}, "data.shard_sise: unknown key; did you mean 'shard_size'?"),
        ({"federation": {"clients": 0}}, "federation.clients: expected a whole number from 1 to 1,000,000, got 0"),
        ({"federation": {"clients": "4"}}, "federation.clients: expected a whole number from 1 to 1,000,000, got '4'"),
        ({"federation": {"clients": True}}, "federation.clients: expected a whole number from 1 to 1,000,000, got true"),
        ({"federation": {"clients": 4.5}}, "federation.clients: expected a whole number from 1 to 1,000,000, got 4.5"),
        ({"federation": {"clients": 2, "clients_per_round": 3}}, "federation.clients_per_round: expected at most federation.clients = 2"),
        ({"federation": {"protocol": "fedsdg"}}, "expected 'fedsgd' or 'fedavg', got 'fedsdg'; did you mean 'fedsgd'?"),
        ({"federation": {"strategy": ["FedAvg"]}}, "federation.strategy: expected a name, or a table with a name and its parameters"),
        ({"federation": 3}, "federation: expected a table, [federation], got 3"),
        ({"local": {"learning_rate": float("inf")}}, "local.learning_rate: expected a number from 1e-12 to 1e+06, got inf"),
        ({"server": {"curious": "yes"}}, "server.curious: expected true or false, got 'yes'"),
        ({"model": "lenet"}, "model: expected a table, [model], got 'lenet'; give it as model.name"),
        ({"data": {"partition": 3}}, "data.partition: expected a name, or a table with a name and its parameters, got 3"),
        ({"data": {"partition": {"alpha": 1}}}, "data.partition.name: missing; expected text"),
        ({"data": {"path": 3}}, "data.path: expected a path, as text, got 3"),
        ({"attacks": ATTACK}, "attacks: expected a list of tables, each headed [[attacks]], got a table"),
        ({"attacks": ["dlg"]}, "attacks[0]: expected a table with a name and its parameters, got 'dlg'"),
        ({"attacks": [ATTACK, {"restarts": 1}]}, "attacks[1].name: missing; expected text"),
        ({"attacks": [ATTACK | {"rounds": "some"}]}, "attacks[0].rounds: expected 'all' or a list that is not empty, of whole numbers from 1 to 1,000,000, got 'some'"),
        ({"attacks": [ATTACK | {"rounds": [0]}]}, "attacks[0].rounds: expected 'all' or a list that is not empty, of whole numbers from 1 to 1,000,000, got [0]"),
        ({"attacks": [ATTACK | {"rounds": []}]}, "attacks[0].rounds: expected 'all' or a list that is not empty"),
        ({"attacks": [ATTACK | {"clients": 0}]}, "attacks[0].clients: expected 'all' or a whole number from 1 to 1,000,000, got 0"),
        ({"attacks": [ATTACK | {"title": "a/b"}]}, "attacks[0].title: expected text of at most 60 characters that matches"),
        ({"bogus": 1, "more": 2, "seed": "x"}, "(2 more after this)"),
    ],
)  # fmt: skip
def test_wrong_keys_and_values_are_told_in_plain_words(keys, message):
    with pytest.raises(ScenarioError) as caught:
        parse_scenario({"name": "x"} | keys)
    text = str(caught.value)
    assert message in text
    assert text.startswith("scenario: ")
    assert "\n" not in text


def test_a_misspelt_key_is_told_before_the_one_that_it_leaves_missing():
    with pytest.raises(ScenarioError, match="nmae: unknown key; did you mean 'name'"):
        parse_scenario({"nmae": "x"})


def test_a_long_value_is_not_repeated_whole():
    with pytest.raises(ScenarioError) as caught:
        parse_scenario({"name": "x", "seed": "9" * 10_000})
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "keys",
    [
        {"seed": 2},
        {"data": {"shard_size": 1}},
        {"data": {"partition": {"name": "dirichlet", "alpha": 0.1}}},
        {"model": {"name": "lenet", "channels": 3}},
        {"federation": {"rounds": 2}},
        {"federation": {"strategy": {"name": "FedAvg", "x": 1}}},
        {"local": {"mode": "eval"}},
        {"server": {"curious": False}},
        {"threat": {"defense_known": True}},
        {"attacks": [ATTACK]},
        {"attacks": [ATTACK | {"restarts": 2}]},
        {"defenses": [{"name": "gaussian-noise", "std": 0.1}]},
        {"evaluation": {"truth": "score"}},
    ],
    ids=str,
)
def test_the_digest_changes_with_what_decides_the_numbers(keys):
    assert parse_scenario({"name": "x"} | keys).digest != parse_scenario({"name": "x"}).digest


def test_the_digest_does_not_depend_on_name_engine_and_patience():
    plain = parse_scenario({"name": "x"})
    assert parse_scenario({"name": "y", "federation": {"engine": "ray", "timeout": 5.0}}).digest == plain.digest
    assert parse_scenario({"name": "x", "seed": 1, "data": {"partition": "iid"}}).digest == plain.digest


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "s.toml"
    path.write_text('name = "x"\n[data]\npartition = "dirichlet"\n[[attacks]]\nname = "dlg"\n[[attacks]]\nname = "idlg"\n')
    return path


def test_overrides_reach_every_depth(file):
    found = load_scenario(
        file,
        ["federation.rounds=5", "data.partition.alpha=0.3", "attacks.1.restarts=7", "attacks.0.rounds=[1, 2]", "threat.preset=labels-known"],
    )  # fmt: skip
    assert found.federation.rounds == 5
    assert (found.data.partition.name, found.data.partition.parameters) == ("dirichlet", {"alpha": 0.3})
    assert found.attacks[1].parameters == {"restarts": 7}
    assert found.attacks[0].rounds == (1, 2)
    assert found.threat.preset == "labels-known"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("federation.rounds", "expected key.path=value"),
        ("=3", "expected key.path=value"),
        ("a..b=3", "expected key.path=value"),
        ("seed.x=3", "'seed' is a value, not a table"),
        ("attacks.2.restarts=3", "'2' is no index into a list of 2; expected 0 to 1"),
        ("attacks.dlg.restarts=3", "'dlg' is no index into a list of 2; expected 0 to 1"),
        ("defenses.0.std=3", "the file has no list 'defenses'"),
        ("federation.rounds=", "federation.rounds: expected a whole number from 1 to 1,000,000, got ''"),
        ("name.x=3", "name: expected text that is not empty, of at most 200 characters, got a table"),
    ],
)
def test_bad_overrides_are_refused(file, override, message):
    with pytest.raises(ScenarioError, match="") as caught:
        load_scenario(file, ["seed=1", override])
    assert message in str(caught.value)


def test_files_that_are_no_scenario(tmp_path):
    (tmp_path / "a.toml").write_text("name = ")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    for name, message in (
        ("a.toml", "not valid TOML"),
        ("b.toml", "cannot be read"),
        ("c.toml", "no such file"),
        ("", "cannot be read"),
    ):
        with pytest.raises(ScenarioError, match=message):
            load_scenario(tmp_path / name)


def test_the_title_is_what_an_attack_is_called_in_the_results():
    assert AttackSpec(name="dlg").result_name == "dlg"
    assert AttackSpec(name="dlg", title="dlg-2").result_name == "dlg-2"
    assert AttackSpec(name="package.module:Mine").result_name == "Mine"
    [spec] = attack_specs(["dlg"], ["title=dlg-2", "restarts=3"])
    assert (spec.result_name, spec.parameters) == ("dlg-2", {"restarts": 3})


def test_an_app_that_flower_installed_finds_the_scenarios_beside_its_pyproject(tmp_path, monkeypatch):
    installed = tmp_path / "installed"
    (installed / "scenarios").mkdir(parents=True)
    (installed / "scenarios" / "s.toml").write_text('name = "beside"')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(installed), *sys.path])
    with pytest.raises(ScenarioError, match="no such file"):  # any folder on the path is not enough
        scenario_from("scenarios/s.toml")
    (installed / "pyproject.toml").write_text("")
    assert scenario_from("scenarios/s.toml").name == "beside"
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios" / "s.toml").write_text('name = "here"')
    assert scenario_from("scenarios/s.toml").name == "here"


def test_a_run_configuration_holds_json_or_a_path():
    assert scenario_from(' {"name": "json"}').name == "json"
    for text, said in (
        ("", "is empty"),
        ("{", "not valid JSON"),
        ('{"nam": 1}', "did you mean 'name'"),
        ("no.toml", "no such file"),
    ):
        with pytest.raises(ScenarioError, match=said):
            scenario_from(text)


def test_half_a_character_is_one_line() -> None:
    with pytest.raises(ScenarioError, match="a text in it is no Unicode"):
        parse_scenario({"name": "x", "data": {"source": "\ud800"}})
