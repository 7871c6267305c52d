"""Plugins are found by name, by entry point and by import path; what cannot be loaded is named."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest

from fedleak import registry
from fedleak.attacks.base import attacks
from fedleak.attacks.counters.base import counters
from fedleak.attacks.labels.base import LabelRule, label_rules
from fedleak.data import sources
from fedleak.defenses.base import defenses
from fedleak.errors import ParameterError, ScenarioError, closest, nearest
from fedleak.models import models
from fedleak.registry import Registry, import_object

KINDS = {kind._package: kind for kind in (attacks, counters, label_rules, sources, defenses, models)}


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


def test_a_name_that_is_taken_is_refused_and_both_places_are_named():
    class Taken(LabelRule):
        name = "given"

    # Whether the built-in one is loaded by now or not.
    fresh: Registry[type[LabelRule]] = Registry("label rule", "fedleak.attacks.labels", LabelRule)
    label_rules.get("given")
    for kind in (fresh, label_rules):
        with pytest.raises(ScenarioError, match="Taken is taken by fedleak.attacks.labels.given:Given"):
            kind.register(Taken)
    assert label_rules.get("given").__name__ == "Given"


def test_a_module_that_is_imported_again_may_replace_its_own():
    kind: Registry[type[LabelRule]] = Registry("label rule", "fedleak.attacks.labels", LabelRule)
    kind.register(Rule)
    again = type("Rule", (LabelRule,), {"name": "mine", "__module__": Rule.__module__, "__qualname__": Rule.__qualname__})
    assert kind.register(again) is kind.get("mine") is again


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Return a function that writes the modules of a package ``shelf``, and a registry for them in ``shelf.base``."""
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf/__init__.py").touch()
    base = "from fedleak.registry import Registry\nthings = Registry('thing', 'shelf')\n"
    (tmp_path / "shelf/base.py").write_text(base)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(**modules):
        for name, source in modules.items():
            (tmp_path / f"shelf/{name}.py").write_text(source)
        registry.declarations.cache_clear()
        return import_object("shelf.base:things", "test")

    yield write
    registry.declarations.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "shelf"]:
        del sys.modules[name]


def plugin(name, head="from shelf.base import things", decorator="@things.register"):
    return f'"""Does {name}."""\n{head}\n\n{decorator}\nclass Thing:\n    name: str = {name!r}\n'


def test_only_what_is_named_is_imported(shelf):
    things = shelf(one=plugin("one"), two_words=plugin("two-words"), elsewhere=plugin("three"), broken=plugin("four") + "1 / 0\n")
    assert things.names() == ["four", "one", "three", "two-words"]
    assert things.get("two-words").name == "two-words"
    assert things.get("three").__module__ == "shelf.elsewhere"
    assert "shelf.one" not in sys.modules
    with pytest.raises(ZeroDivisionError):
        things.get("four")


@pytest.mark.parametrize(
    "odd",
    [
        "from shelf import base\n@base.things.register\nclass A:\n    name = 'odd'\n",
        "from shelf.base import things\nmine = 'odd'\n@things.register\nclass A:\n    name = mine\n",
        "from shelf.base import things\nclass A:\n    name = 'odd'\nthings.register(A)\n",
        "from shelf.base import things\nfor name in ['odd']:\n    things.register(type('A', (), {'name': name}))\n",
    ],
)
def test_what_hides_its_name_is_imported_to_learn_it(shelf, odd):
    things = shelf(odd=odd, plain=plugin("plain"))
    assert things.names() == ["odd", "plain"]
    assert things.get("odd").name == "odd"
    assert not registry.is_declared_whole("shelf")


def test_two_files_with_one_name_are_refused(shelf):
    things = shelf(one=plugin("same"), two=plugin("same"))
    with pytest.raises(ScenarioError, match="'same': both shelf.one:Thing and shelf.two:Thing have this name"):
        things.names()


def test_the_names_read_are_those_that_are_registered():
    for package, kind in KINDS.items():
        declared = registry.declarations(package)
        assert not declared.unread, package
        assert registry.is_declared_whole(package) or registry.entry_points(group=package)
        for one in declared.plugins.values():
            found = kind.get(one.name)
            assert f"{found.__module__}:{found.__qualname__}" == one.place
            assert found.name == one.name
            assert kind._plugins[one.name] is found, "its decorator is not that of its kind"
