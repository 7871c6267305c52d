"""Numbers that no computation can carry, and paths that no file system takes, are refused where they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from fedleak.errors import ParameterError, ScenarioError
from fedleak.scenario.ranges import Parameters
from fedleak.scenario.schema import load_scenario, parse_scenario, scenario_from
from fedleak.scenario.validation import read_parameters, refuse_depth


class Plugin(Parameters):
    share: float = 0.5
    free: float = Field(default=1.0, allow_inf_nan=True)
    many: int = 1
    sizes: tuple[int, ...] = ()
    table: dict[str, Any] = {}


@pytest.mark.parametrize(
    "values",
    [
        {"share": float("nan")},
        {"share": float("inf")},
        {"share": 1e-320},
        {"share": -1e31},
        {"free": 1e-40},
        {"many": 2**40},
        {"many": -(10**30)},
        {"sizes": [1, 2**40]},
        {"table": {"a": [{"b": 1e300}]}},
        {"table": {"x" * 2000: 1}},
    ],
)
def test_numbers_out_of_reach_are_refused(values):
    with pytest.raises(ParameterError, match="expected"):
        read_parameters(Plugin, values, "plugin")


@pytest.mark.parametrize("values", [{"share": 0.0}, {"share": 1e-30}, {"free": float("inf")}, {"many": 2**31}, {"sizes": []}])
def test_others_pass(values):
    assert read_parameters(Plugin, values, "plugin")


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 1e12, 1e-320, 0, -1])
@pytest.mark.parametrize("key", ["federation.timeout", "server.attack_limit"])
def test_times_are_finite_and_sane(key, seconds):
    section, name = key.split(".")
    with pytest.raises(ScenarioError, match=f"{key}: expected a number from"):
        parse_scenario({"name": "x", section: {name: seconds}})


@pytest.mark.parametrize("seconds", [float("inf"), 1e12, 1e-320])
def test_so_is_an_attacks_budget(seconds):
    from fedleak.attacks.base import attacks

    with pytest.raises(ParameterError, match="budget_seconds: expected a number from 1e-09 to 1e"):
        attacks.get("dlg")(budget_seconds=seconds)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("x" * 256, "names of at most 255 bytes in the path, got one of 256"),
        ("a/" * 3000, "at most 4,095 bytes"),
        ("a\0b", "NUL"),
    ],
)
@pytest.mark.parametrize("key", ["data.path", "data.shard", "model.weights", "evaluation.lpips"])
def test_paths_that_no_file_system_takes(key, path, told):
    section, name = key.split(".")
    with pytest.raises(ScenarioError, match=told):
        parse_scenario({"name": "x", section: {name: path}})


def test_nesting_without_sense_is_told(tmp_path: Path):
    deep: Any = 1
    for _ in range(30):
        deep = {"a": [deep]}
    with pytest.raises(ScenarioError, match="nested more than 20 deep"):
        parse_scenario({"name": "x", "model": {"name": "lenet", "a": deep}})
    refuse_depth({"a": [[1], {"b": [2]}]})
    for text in ("name = " + "[" * 100_000, "[" + "a." * 3000 + "a]\nb = 1\n", "a = " + "{a=" * 50_000):
        (tmp_path / "s.toml").write_text(text)
        with pytest.raises(ScenarioError):
            load_scenario(tmp_path / "s.toml")
    (tmp_path / "s.toml").write_text('name = "x"\n')
    with pytest.raises(ScenarioError):
        load_scenario(tmp_path / "s.toml", ["model.channels=" + "[" * 100_000])
    with pytest.raises(ScenarioError, match="not valid JSON"):
        scenario_from('{"name": ' + "[" * 200_000)


def test_numbers_of_many_digits_and_files_of_many_bytes(tmp_path: Path):
    place = tmp_path / "s.toml"
    for text in (f'name = "x"\nseed = {10**3000}\n', f'name = "x"\n[local]\nbatch_size = {10**4000}\n', f"a = {'9' * 5000}\n"):
        place.write_text(text)
        with pytest.raises(ScenarioError) as refused:
            load_scenario(place)
        assert len(str(refused.value)) < 500
    place.write_text("#" * 2**21)
    with pytest.raises(ScenarioError, match="more than 1,048,576 bytes"):
        load_scenario(place)
    with pytest.raises(ScenarioError, match="more than"):
        load_scenario("/dev/zero")


def test_a_name_of_any_length_is_compared_in_no_time():
    with pytest.raises(ScenarioError, match="attacks"):
        parse_scenario({"name": "x", "attacks" + "s" * 200_000: 1})


def test_the_class_itself_refuses_too():
    with pytest.raises(ValidationError):
        Plugin(share=float("inf"))
