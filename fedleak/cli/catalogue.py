"""What a scenario can name, and what there is to know of each: the text of ``fedleak list`` and ``fedleak explain``.

Names and documents are read from the source: a list imports Flower, and no torch; to explain a plugin, its module is imported.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any

from pydantic import BaseModel

from fedleak.cli.parameters import rows_of
from fedleak.cli.topics import TOPICS
from fedleak.errors import ScenarioError, nearest
from fedleak.registry import Registry, declaration, declarations, is_declared_whole
from fedleak.threat import Knowledge, presets_granting

KINDS = {
    "attacks": ("fedleak.attacks", "attacks"),
    "defenses": ("fedleak.defenses", "defenses"),
    "counters": ("fedleak.attacks.counters", "counters"),
    "label rules": ("fedleak.attacks.labels", "label_rules"),
    "membership tests": ("fedleak.attacks.membership", "membership_tests"),
    "data sources": ("fedleak.data", "sources"),
    "models": ("fedleak.models", "models"),
}
"""The package of each kind's plugins, and what its registry is called there, in the module ``base``."""


NO_COUNTER = "none: no counter knows it, and no sweep says that it blocks before an attack is there that goes through it"
"""What is said of a defense without one."""


def registry_of(kind: str) -> Registry[Any]:
    """Return the registry of a kind, such as ``"attacks"``; its base is imported for it, and torch with that."""
    package, name = KINDS[kind]
    found: Registry[Any] = getattr(importlib.import_module(f"{package}.base"), name)
    return found


def _names(kind: str) -> list[str]:
    package, _ = KINDS[kind]
    return sorted(declarations(package).plugins) if is_declared_whole(package) else registry_of(kind).names()


def _line(kind: str, name: str) -> str:
    declared = declaration(KINDS[kind][0], name)
    return _first_line(_tidy(declared.document) if declared else document(registry_of(kind).get(name)))


def catalogue() -> dict[str, dict[str, str]]:
    """Return, for each kind of plugin, its names with one line each."""
    listed = {kind: {name: _line(kind, name) for name in _names(kind)} for kind in KINDS}
    from fedleak.server.strategies import strategy_names

    listed["strategies"] = {name: _first_line(_strategy_document(name)) for name in strategy_names()}
    return listed


def explanation(name: str) -> str:
    """Return what there is to know of the plugin called ``name``, or of one of :data:`~fedleak.cli.topics.TOPICS`.

    Raises
    ------
    ScenarioError
        If no plugin of any kind has that name.
    """
    if topic := TOPICS.get(name.casefold()):
        return topic()
    parts = []
    for kind in KINDS:
        if name in _names(kind):
            plugin = registry_of(kind).get(name)
            config = getattr(plugin, "Config", None)
            what = f"{kind[:-1]} of the attack 'adaptive'" if kind == "counters" else kind[:-1]
            parts.append([f"{name} ({what})", document(plugin), *_parameters(config), *_needs(plugin), *_uncountered(kind, name)])
    # Strategies are classes of Flower's, and called like them: for "dlg" Flower need not be imported.
    if not parts or name[:1].isupper():
        parts += _strategy(name)
    if not parts:
        from fedleak.server.strategies import strategy_names

        known = [known for kind in KINDS for known in _names(kind)]
        raise ScenarioError(f"unknown plugin '{name}'; {nearest(name, [*known, *strategy_names(), *TOPICS])}")
    return "\n\n\n".join("\n\n".join(part) for part in parts)


def document(plugin: Any) -> str:
    """Return the docstring of a plugin's module, or else its own, tidied."""
    module = sys.modules[plugin.__module__] if inspect.isclass(plugin) else sys.modules[type(plugin).__module__]
    return _tidy(module.__doc__ or plugin.__doc__ or "")


def _tidy(document: str) -> str:
    return inspect.cleandoc(document).replace("``", "'")


def _strategy(name: str) -> list[list[str]]:
    from flwr.serverapp import strategy as flower

    from fedleak.server.strategies import strategy_names, strategy_parameters

    if name not in strategy_names():
        return []
    config = strategy_parameters(getattr(flower, name), {})
    where = "Used with federation.protocol = 'fedavg'." if name != "FedAvg" else "The default, with either protocol."
    return [[f"{name} (strategy of Flower's)", f"{_first_line(_strategy_document(name))}\n{where}", *_parameters(config)]]


def _strategy_document(name: str) -> str:
    from flwr.serverapp import strategy as flower

    return inspect.cleandoc(getattr(flower, name).__doc__ or "")


def _first_line(document: str) -> str:
    # A first paragraph may be broken into lines; a list shows one line each.
    return " ".join(document.split("\n\n")[0].split("\nFormula:")[0].split())


def _parameters(config: type[BaseModel] | None) -> list[str]:
    return ["\n".join(["Parameters", *rows_of(config)])] if config is not None and config.model_fields else []


def _needs(plugin: Any) -> list[str]:
    if not inspect.isclass(plugin):
        return []
    if hasattr(plugin, "kinds"):  # an attack
        kinds = {"gradient": "from gradients (fedsgd)", "weights": "from weights (fedavg)"}
        lines = [f"  {kinds[kind]}: {_granting(plugin.needs(kind))}" for kind in sorted(plugin.kinds)]
        return ["\n".join(["Needs", *lines])]
    required: frozenset[Knowledge] = getattr(plugin, "requires", frozenset())
    return [f"Needs\n  {_granting(required)}"] if required else []


def _uncountered(kind: str, name: str) -> list[str]:
    return [f"Adaptive attacker\n  {NO_COUNTER}"] if kind == "defenses" and name not in _names("counters") else []


def _granting(needed: frozenset[Knowledge]) -> str:
    if not needed:
        return "the update alone"
    presets = presets_granting(needed)
    known = " and threat.defense_known = true" if Knowledge.DEFENSE in needed else ""
    facts = ", ".join(sorted(fact.value for fact in needed))
    return f"{facts} (threat.preset = '{presets[0]}' or any after it{known})"
