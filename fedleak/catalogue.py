"""What a scenario can name, and what there is to know of each: the text of ``fedleak list`` and ``fedleak explain``."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from fedleak.attacks.base import Attack, attacks
from fedleak.attacks.labels.base import label_rules
from fedleak.data.base import sources
from fedleak.defenses.base import defenses
from fedleak.errors import ScenarioError, nearest
from fedleak.models import models
from fedleak.registry import Registry
from fedleak.server.strategies import strategy_names
from fedleak.threat import presets_granting


def _registries() -> dict[str, Registry[Any]]:
    return {"attacks": attacks, "defenses": defenses, "label rules": label_rules, "data sources": sources, "models": models}


def catalogue() -> dict[str, dict[str, str]]:
    """Return, for each kind of plugin, its names with one line each."""
    listed = {
        kind: {name: _document(registry.get(name)).split("\n")[0] for name in registry.names()}
        for kind, registry in _registries().items()
    }
    listed["strategies"] = dict.fromkeys(strategy_names(), "Flower's")
    return listed


def explanation(name: str) -> str:
    """Return what there is to know of the plugin called ``name``.

    Raises
    ------
    ScenarioError
        If no plugin of any kind has that name.
    """
    parts = []
    for kind, registry in _registries().items():
        if name in registry.names():
            plugin = registry.get(name)
            parts.append(f"{name} ({kind[:-1]})\n\n{_document(plugin)}\n{_parameters(plugin)}{_needs(plugin)}")
    if not parts:
        known = [known for registry in _registries().values() for known in registry.names()]
        raise ScenarioError(f"unknown plugin '{name}'; {nearest(name, known)}")
    return "\n\n".join(parts)


def _document(plugin: Any) -> str:
    module = sys.modules[plugin.__module__] if inspect.isclass(plugin) else sys.modules[type(plugin).__module__]
    return inspect.cleandoc(module.__doc__ or plugin.__doc__ or "")


def _parameters(plugin: Any) -> str:
    config = getattr(plugin, "Config", None)
    if config is None or not issubclass(config, BaseModel) or not config.model_fields:
        return ""
    lines = ["", "Parameters"]
    for name, field in config.model_fields.items():
        default = "required" if field.default is PydanticUndefined else f"= {field.default!r}"
        lines.append(f"  {name} {default}  {field.description or ''}".rstrip())
    return "\n".join(lines) + "\n"


def _needs(plugin: Any) -> str:
    if not (inspect.isclass(plugin) and issubclass(plugin, Attack)):
        return ""
    lines = ["", "Needs"]
    for kind in sorted(plugin.kinds):
        needed = plugin.needs(kind)
        granting = ", ".join(presets_granting(needed))
        lines.append(f"  {kind}: {', '.join(sorted(needed)) or 'the update alone'} (threat.preset: {granting})")
    return "\n".join(lines) + "\n"
