"""Every key of a scenario and every level of a threat has its explanation."""

from __future__ import annotations

import re

from fedleak.cli.catalogue import explanation
from fedleak.scenario.schema import Scenario
from fedleak.threat import PRESETS


def test_every_key_of_a_scenario_is_explained_with_its_table():
    text = explanation("scenario")
    for name, field in Scenario.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            for key in field.annotation.model_fields:
                assert re.search(rf"^\[{name}\]\n(  .*\n)*  {key} ", text, re.M), (name, key)
    assert "budget_seconds" in text


def test_every_preset_of_a_threat_is_explained():
    text = explanation("threat")
    for preset in PRESETS:
        assert f"    {preset} " in text


def test_what_an_own_model_and_source_are_given_is_explained():
    text = explanation("own")
    assert all(
        given in text for given in ("num_classes", "input_shape", "in_channels", "mine:make", "mine:Own", "class_names", "load(")
    )
    assert "``" not in text
