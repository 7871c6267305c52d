"""Everything that a scenario can name has a line, and an explanation with its parameters."""

from __future__ import annotations

import pytest

from fedleak.attacks.base import attacks
from fedleak.cli.catalogue import catalogue, explanation
from fedleak.errors import ScenarioError
from fedleak.registry import declarations

OWN = ("attacks", "defenses", "label rules", "data sources", "models")
NAMES = sorted({name for names in catalogue().values() for name in names})


@pytest.mark.parametrize("name", NAMES)
def test_every_plugin_is_explained(name):
    text = explanation(name)
    assert text.startswith(name)
    assert "``" not in text
    assert "PydanticUndefined" not in text
    assert "<class" not in text


def test_every_line_of_the_list_says_something():
    for kind, names in catalogue().items():
        assert names, kind
        for name, line in names.items():
            assert len(line) > 12, name
            assert "\n" not in line


@pytest.mark.parametrize("name", attacks.names())
def test_attacks_are_explained_with_formula_source_parameters_and_needs(name):
    text = explanation(name)
    for label in ("Formula:", "Source:", "Parameters", "restarts", "budget_seconds", "Needs"):
        assert label in text, label


def test_parameters_stand_with_default_and_what_is_expected():
    lenet = explanation("lenet")
    assert "channels    12       output channels of each convolution; a whole number of at least 1" in lenet
    assert "activation  sigmoid  'sigmoid', 'tanh'" in lenet
    assert "ratio  required" in explanation("gradient-pruning")
    assert "beta_1  0.9" in explanation("FedAdam")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in OWN for name in catalogue()[kind]])
def test_every_plugin_but_counters_says_its_limits(kind, name):
    assert "Limits: " in explanation(name), kind


def test_needs_name_the_weakest_preset():
    assert "labels (threat.preset = 'labels-known' or any after it)" in explanation("given")
    assert "from weights (fedavg): local-training (threat.preset = 'local-training-known'" in explanation("closed-form")
    assert "from gradients (fedsgd): the update alone" in explanation("closed-form")


def test_a_name_of_two_kinds_is_explained_twice():
    text = explanation("idlg")
    assert "idlg (attack)" in text
    assert "idlg (label rule)" in text


def test_an_unknown_name_gets_the_closest_of_every_kind():
    with pytest.raises(ScenarioError, match="unknown plugin 'fedadm'; did you mean 'FedAdam'"):
        explanation("fedadm")


def test_a_defense_is_explained_with_the_attacker_who_knows_it():
    text = explanation("random-masking")
    assert "random-masking (defense)" in text
    assert "random-masking (counter of the attack 'adaptive')" in text


def test_a_defense_without_an_adaptive_attacker_says_so(monkeypatch):
    counters = declarations("fedleak.attacks.counters").plugins
    assert "Adaptive attacker" not in explanation("clipping")
    monkeypatch.delitem(counters, "clipping")
    assert "Adaptive attacker\n  none: no counter knows it, and no sweep says that it blocks" in explanation("clipping")
