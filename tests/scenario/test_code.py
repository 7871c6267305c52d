"""What a scenario names as code, wherever it stands, is found without being imported."""

from __future__ import annotations

import pytest

from fedleak.errors import ScenarioError
from fedleak.scenario.code import check_allowed, code_of, refuse_code
from fedleak.scenario.schema import Scenario, parse_scenario

NAMED = {
    "data.source": "mine:Source",
    "data.partition.name": "mine:Partitioner",
    "model.name": "mine:net",
    "model.blocks[0].kind": "mine:Block",
    "federation.strategy.name": "mine:Strategy",
    "attacks[0].name": "mine:Attack",
    "attacks[0].labels": "mine:Rule",
    "defenses[0].name": "mine:Defense",
}


@pytest.fixture
def scenario() -> Scenario:
    return parse_scenario(
        {
            "name": "a: b",
            "data": {"source": "mine:Source", "path": "/data/a:b", "partition": "mine:Partitioner"},
            "model": {"name": "mine:net", "blocks": [{"kind": "mine:Block"}]},
            "federation": {"strategy": "mine:Strategy", "superlink": {"address": "127.0.0.1:80"}},
            "local": {"device": "cuda:1"},
            "attacks": [{"name": "mine:Attack", "labels": "mine:Rule"}],
            "defenses": [{"name": "mine:Defense"}],
        }
    )


def test_every_name_of_code_is_found_by_its_key_and_nothing_else(scenario: Scenario) -> None:
    assert code_of(scenario) == NAMED
    assert list(code_of(scenario, "attacks")) == ["attacks[0].name", "attacks[0].labels"]
    assert code_of(Scenario(name="plain")) == {}


def test_what_is_known_is_let_through_and_the_rest_is_said(scenario: Scenario) -> None:
    refuse_code(scenario, "x", known=NAMED.values())
    with pytest.raises(ScenarioError, match=r"^x: names code .*: data\.source = 'mine:Source', .* and 1 more; .* --allow-code"):
        refuse_code(scenario, "x", known=["mine:net", "mine:Block"])
    refuse_code(scenario, "x", "attacks", known=["mine:Attack", "mine:Rule"])


def test_a_flower_run_must_allow_it_in_so_many_words(scenario: Scenario) -> None:
    for config in ({}, {"allow-code": False}, {"allow-code": "true"}, {"allow-code": 1}):
        with pytest.raises(ScenarioError, match="allow-code=true to the run configuration"):
            check_allowed(scenario, config)
    check_allowed(scenario, {"allow-code": True})
    check_allowed(Scenario(name="plain"), {})
