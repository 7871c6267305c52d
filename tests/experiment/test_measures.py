import re
from typing import Any

import pytest

from fedleak.errors import ScenarioError
from fedleak.experiment.plugins import check_plugins
from fedleak.scenario.schema import parse_scenario

BASE: dict[str, Any] = {"name": "test", "federation": {"clients": 6, "rounds": 2}}
PRIVATE = {"name": "dp-sgd", "max_norm": 1.0, "noise_multiplier": 1.0}


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"evaluation": {"membership": {}, "truth": "score"}}, "set evaluation.truth = 'reveal'"),
        ({"evaluation": {"membership": {}}, "server": {"curious": False}}, "set server.curious = true"),
        ({"evaluation": {"membership": {"tests": ["gradient-alignment"] * 2}}}, "one test is named twice"),
        (
            {"evaluation": {"membership": {"tests": ["alignment"]}}},
            "tests[0].name: unknown membership test",
        ),
        ({"evaluation": {"membership": {"tests": [{"name": "gradient-alignment", "x": 1}]}}}, "evaluation.membership.tests[0].x"),
        ({"evaluation": {"membership": {"tests": ["likelihood-ratio"]}}}, "set threat.preset to one of: surrogate-data"),
        ({"evaluation": {"membership": {"rounds": [3]}}}, "evaluation.membership.rounds: round 3 comes after the last one"),
        ({"evaluation": {"canaries": {"count": 6}}}, "set federation.clients to more than 6"),
        ({"evaluation": {"canaries": {"count": 4}}, "defenses": [PRIVATE]}, "defenses[0] 'dp-sgd' protects single images"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError, match=re.escape(message)) as caught:
        check_plugins(parse_scenario({**BASE, **tables}))
    assert "\n" not in str(caught.value)


def test_what_can_be_measured_is_not() -> None:
    membership = {"tests": ["gradient-alignment", "likelihood-ratio"], "rounds": [1, 2]}
    evaluation = {"membership": membership, "canaries": {"count": 4}}
    private = {"name": "client-dp", "max_norm": 1.0, "noise_multiplier": 1.0}
    check_plugins(
        parse_scenario({**BASE, "threat": {"preset": "surrogate-data"}, "evaluation": evaluation, "defenses": [private]})
    )
