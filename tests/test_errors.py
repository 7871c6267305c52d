"""What an error says of a name that is not known, and where a parameter's error points."""

import pytest

from fedleak.errors import ParameterError, ScenarioError, closest, nearest


def test_the_likeliest_is_named_and_all_are_listed_where_they_are_few() -> None:
    assert nearest("learing_rate", ["seed", "learning_rate"]) == "did you mean 'learning_rate'? Known: learning_rate, seed"
    assert nearest("zzz", ["batch_size"]) == "known: batch_size"
    assert nearest("x", []) == "none is known"
    assert closest("LENET", ["lenet", "vit"]) == "lenet"
    assert closest("zzz", ["lenet"]) is None


def test_of_many_only_the_closest_are_listed() -> None:
    said = nearest("name7", [f"name{number}" for number in range(30)])
    assert said.startswith("did you mean 'name7'? Known (the closest of 30): name7, ")
    assert said.count(",") == 4


def test_a_parameters_error_is_told_with_its_place_in_the_scenario() -> None:
    error = ParameterError("attack 'dlg'", "restart", "unknown key", ["restarts"])
    assert str(error) == "attack 'dlg': restart: unknown key for attack 'dlg'; did you mean 'restarts'? Known: restarts"
    placed = error.at("attacks[0]", also=["rounds"])
    assert isinstance(placed, ScenarioError)
    assert str(placed) == "attacks[0].restart: unknown key for attack 'dlg'; did you mean 'restarts'? Known: restarts, rounds"
    with pytest.raises(ScenarioError, match=r"^attacks\[0\]: too many$"):
        raise ParameterError("attack 'dlg'", "", "too many").at("attacks[0]")
