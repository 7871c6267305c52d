"""Plugins are found by name, by entry point and by import path; what cannot be loaded is named."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from fedleak import registry
from fedleak.attacks.labels.base import LabelRule, label_rules
from fedleak.errors import ParameterError, ScenarioError, closest, nearest
from fedleak.registry import Registry, import_object


class Rule(LabelRule):
    name = "mine"

    def restore(self, observation, model):
        return (0,)


@pytest.fixture
def module(monkeypatch):
    made = ModuleType("somebodys")
    made.Rule = Rule
    made.NoRule = int
    monkeypatch.setitem(sys.modules, "somebodys", made)


@pytest.mark.usefixtures("module")
def test_a_class_is_found_by_its_import_path():
    assert label_rules.get("somebodys:Rule") is Rule


@pytest.mark.usefixtures("module")
def test_what_is_of_another_kind_is_refused():
    with pytest.raises(ScenarioError, match="is no subclass of fedleak.attacks.labels.base.LabelRule"):
        label_rules.get("somebodys:NoRule")


@pytest.mark.usefixtures("module")
def test_a_missing_attribute_names_the_nearest():
    with pytest.raises(ScenarioError, match="'somebodys' has no 'Rul'; did you mean 'Rule'"):
        import_object("somebodys:Rul", "here")


def entry(load):
    return SimpleNamespace(name="theirs", load=load, dist=SimpleNamespace(name="their-package"))


def test_entry_points_add_plugins(monkeypatch):
    kind: Registry[type[LabelRule]] = Registry("label rule", "fedleak.attacks.labels", LabelRule)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry(lambda: kind.register(Rule))] if "labels" in group else [])
    assert kind.get("mine") is Rule


def test_a_broken_entry_point_names_its_package(monkeypatch):
    def load():
        raise KeyError("x")

    kind: Registry[type[LabelRule]] = Registry("label rule", "fedleak.attacks.labels", LabelRule)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry(load)])
    with pytest.raises(
        ScenarioError, match="'theirs' of their-package: cannot be loaded .KeyError: 'x'.; repair or uninstall it"
    ):
        kind.names()


def test_few_known_names_are_listed_whole_and_of_many_only_the_closest():
    assert nearest("dgl", ["dlg", "idlg"]) == "did you mean 'dlg'? Known: dlg, idlg"
    assert nearest("zzz", ["dlg", "idlg"]) == "known: dlg, idlg"
    assert nearest("x", []) == "none is known"
    text = nearest("name42", [f"name{number}" for number in range(1000)])
    assert text.startswith("did you mean 'name42'? Known (the closest of 1000): name42, ")
    assert len(text) < 120


def test_capitals_do_not_keep_a_name_from_being_found():
    assert closest("fedavg", ["FedAvg", "Krum"]) == "FedAvg"
    assert closest("DLG", ["dlg"]) == "dlg"
    assert closest("zzz", ["dlg"]) is None


def test_a_parameters_error_carries_its_full_path():
    unknown = ParameterError("attack 'dlg'", "round", "unknown key", ["restarts"])
    assert str(unknown) == "attack 'dlg': round: unknown key for attack 'dlg'; known: restarts"
    assert str(unknown.at("attacks[0]", ["rounds"])).startswith(
        "attacks[0].round: unknown key for attack 'dlg'; did you mean 'rounds'"
    )
    assert str(ParameterError("model 'vit'", "", "at odds").at("model")) == "model: at odds"
