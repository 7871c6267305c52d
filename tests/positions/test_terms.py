from typing import Any

import pytest

from fedleak.observation import LocalTraining
from fedleak.positions.terms import Terms
from fedleak.scenario.schema import Local, parse_scenario
from fedleak.threat import Knowledge


def test_a_scenarios_terms_hold_what_it_says() -> None:
    terms = Terms.of(
        parse_scenario(
            {
                "name": "x",
                "federation": {"protocol": "fedavg", "timeout": 7, "clients": 3},
                "local": {"batch_size": 4, "epochs": 2},
                "threat": {"preset": "labels-known", "defense_known": True},
                "defenses": [{"name": "clipping", "norm": 2.0}, {"name": "secagg-view"}],
                "evaluation": {"truth": "score"},
            }
        )
    )
    assert (terms.protocol, terms.truth, terms.timeout, terms.sums) == ("fedavg", "score", 7.0, True)
    assert terms.granted == {Knowledge.LOCAL_TRAINING, Knowledge.LABELS, Knowledge.DEFENSE}
    assert terms.defenses == ({"name": "clipping", "norm": 2.0}, {"name": "secagg-view"})
    assert terms.threat.preset == "labels-known"
    assert not Terms.of(parse_scenario({"name": "x"})).sums


@pytest.mark.parametrize(
    ("protocol", "local", "examples", "clients", "expected"),
    [
        ("fedsgd", {"batch_size": 4}, 3, 1, (3, 3, 1, 1)),
        ("fedsgd", {"batch_size": 4}, 12, 3, (12, 12, 1, 1)),
        ("fedavg", {"batch_size": 4, "epochs": 2}, 10, 1, (10, 4, 6, 2)),
        ("fedavg", {"batch_size": 4, "steps": 5}, 10, 1, (10, 4, 5, 1)),
        ("fedavg", {"batch_size": 4, "epochs": 2}, 10, 3, (10, 10, 2, 2)),
        ("fedavg", {"batch_size": 2, "epochs": 1}, 12, 3, (12, 6, 2, 1)),
    ],
)
def test_local_training_follows_from_the_hyper_parameters(
    protocol: Any, local: dict[str, Any], examples: int, clients: int, expected: tuple[int, ...]
) -> None:
    terms = Terms(protocol, Local(learning_rate=0.5, mode="eval", **local))
    assert terms.local_training(examples, clients) == LocalTraining(*expected, 0.5, "eval")
