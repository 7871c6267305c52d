"""What a scenario can name, and what there is to know of each: the text of ``fedleak list`` and ``fedleak explain``."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from flwr.serverapp import strategy as flower
from pydantic import BaseModel

from fedleak.attacks.base import Attack, attacks
from fedleak.attacks.counters.base import counters
from fedleak.attacks.labels.base import label_rules
from fedleak.cli.parameters import rows_of
from fedleak.cli.topics import TOPICS
from fedleak.data.base import sources
from fedleak.defenses.base import defenses
from fedleak.errors import ScenarioError, nearest
from fedleak.models import models
from fedleak.registry import Registry
from fedleak.server.strategies import strategy_names, strategy_parameters
from fedleak.threat import Knowledge, presets_granting


def _registries() -> dict[str, Registry[Any]]:
    return {
        "attacks": attacks,
        "defenses": defenses,
        "counters": counters,
        "label rules": label_rules,
        "data sources": sources,
        "models": models,
    }


def catalogue() -> dict[str, dict[str, str]]:
    """Return, for each kind of plugin, its names with one line each."""
    listed = {
        kind: {name: _first_line(_document(registry.get(name))) for name in registry.names()}
        for kind, registry in _registries().items()
    }
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
    for kind, registry in _registries().items():
        if name in registry.names():
            plugin = registry.get(name)
            config = getattr(plugin, "Config", None)
            what = f"{kind[:-1]} of the attack 'adaptive'" if kind == "counters" else kind[:-1]
            parts.append([f"{name} ({what})", _document(plugin), *_parameters(config), *_needs(plugin)])
    if name in strategy_names():
        config = strategy_parameters(getattr(flower, name), {})
        where = "Used with federation.protocol = 'fedavg'." if name != "FedAvg" else "The default, with either protocol."
        parts.append(
            [f"{name} (strategy of Flower's)", f"{_first_line(_strategy_document(name))}\n{where}", *_parameters(config)]
        )
    if not parts:
        known = [known for registry in _registries().values() for known in registry.names()]
        raise ScenarioError(f"unknown plugin '{name}'; {nearest(name, [*known, *strategy_names(), *TOPICS])}")
    return "\n\n\n".join("\n\n".join(part) for part in parts)


def _document(plugin: Any) -> str:
    module = sys.modules[plugin.__module__] if inspect.isclass(plugin) else sys.modules[type(plugin).__module__]
    return inspect.cleandoc(module.__doc__ or plugin.__doc__ or "").replace("``", "'")


def _strategy_document(name: str) -> str:
    return inspect.cleandoc(getattr(flower, name).__doc__ or "")


def _first_line(document: str) -> str:
    # A first paragraph may be broken into lines; a list shows one line each.
    return " ".join(document.split("\n\n")[0].split("\nFormula:")[0].split())


def _parameters(config: type[BaseModel] | None) -> list[str]:
    return ["\n".join(["Parameters", *rows_of(config)])] if config is not None and config.model_fields else []


def _needs(plugin: Any) -> list[str]:
    if not inspect.isclass(plugin):
        return []
    if issubclass(plugin, Attack):
        kinds = {"gradient": "from gradients (fedsgd)", "weights": "from weights (fedavg)"}
        lines = [f"  {kinds[kind]}: {_granting(plugin.needs(kind))}" for kind in sorted(plugin.kinds)]
        return ["\n".join(["Needs", *lines])]
    required: frozenset[Knowledge] = getattr(plugin, "requires", frozenset())
    return [f"Needs\n  {_granting(required)}"] if required else []


def _granting(needed: frozenset[Knowledge]) -> str:
    if not needed:
        return "the update alone"
    presets = presets_granting(needed)
    known = " and threat.defense_known = true" if Knowledge.DEFENSE in needed else ""
    facts = ", ".join(sorted(fact.value for fact in needed))
    return f"{facts} (threat.preset = '{presets[0]}' or any after it{known})"
