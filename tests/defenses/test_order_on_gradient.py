"""Which defenses on the model and on each step's gradient can be combined, and in what order."""

import pytest

from fedleak.errors import ScenarioError
from fedleak.experiment.check import check
from fedleak.scenario.schema import parse_scenario


def refusal(*chain: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        check(parse_scenario({"name": "x", "defenses": [{"name": name} for name in chain]}))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["precode", "soteria", "grad-defense", "outpost"])
def test_two_of_a_kind_are_refused(name: str) -> None:
    assert refusal(name, name).startswith(f"defenses: '{name}' cannot be combined with another of its kind: ")


@pytest.mark.parametrize(
    ("first", "second"),
    [("dropout", "precode"), ("outpost", "soteria"), ("grad-defense", "soteria"), ("grad-defense", "outpost")],
)
def test_an_order_that_makes_no_sense_is_refused_and_the_other_runs(first: str, second: str) -> None:
    assert refusal(first, second).startswith(f"defenses: '{first}' must not come before '{second}': ")
    check(parse_scenario({"name": "x", "defenses": [{"name": second}, {"name": first}]}))


def test_dropout_finds_the_layers_of_the_bottleneck() -> None:
    check(parse_scenario({"name": "x", "defenses": [{"name": "precode"}, {"name": "dropout", "where": "fc.decoder"}]}))
    with pytest.raises(ScenarioError, match=r"defenses\[1\].*'fc'.*fc\.decoder"):
        check(parse_scenario({"name": "x", "defenses": [{"name": "precode"}, {"name": "dropout", "where": "fc"}]}))
