"""Plugins by name: those in fedleak's own packages, third parties' by entry point, and ``package.module:name``.

A plugin module registers what it defines with a decorator::

    @attacks.register
    class MyAttack(Attack):
        name = "my-attack"

Built-in modules are found by listing their package, so that adding a plugin touches no other file. Another
distribution adds its own through an entry point in the group ``fedleak.attacks`` (``defenses``, ``labels``,
``sources``, ``models``) that names the module.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from fedleak.errors import ScenarioError, nearest

T = TypeVar("T")
P = TypeVar("P", bound=Any)


class Registry(Generic[T]):
    """The plugins of one kind.

    Parameters
    ----------
    kind : str
        What one is called in messages, such as ``"attack"``.
    package : str
        The package whose modules are imported to find the built-in ones.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._plugins: dict[str, T] = {}
        self._loaded = False

    def register(self, plugin: P) -> P:
        """Register ``plugin`` under its ``name`` attribute; use as a decorator."""
        self._plugins[plugin.name] = plugin
        return plugin

    def names(self) -> list[str]:
        """Return all known names, sorted."""
        self._load()
        return sorted(self._plugins)

    def get(self, name: str) -> T:
        """Return the plugin called ``name``, or the object that ``package.module:name`` points to.

        Raises
        ------
        ScenarioError
            If there is none; the message names the nearest.
        """
        self._load()
        if name in self._plugins:
            return self._plugins[name]
        if ":" in name:
            found: T = import_object(name, f"{self.kind} '{name}'")
            return found
        raise ScenarioError(f"unknown {self.kind} '{name}'; {nearest(name, self._plugins)}")

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__, f"{self._package}."):
            importlib.import_module(module.name)
        for entry in entry_points(group=self._package):
            entry.load()


def import_object(path: str, where: str) -> Any:
    """Import ``package.module:attribute``.

    Raises
    ------
    ScenarioError
        If the module or the attribute does not exist.
    """
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ScenarioError(f"{where}: cannot import '{module_name}' ({error}); is it on PYTHONPATH?") from error
    if not hasattr(module, attribute):
        known = [name for name, _ in inspect.getmembers(module) if not name.startswith("_")]
        raise ScenarioError(f"{where}: '{module_name}' has no '{attribute}'; {nearest(attribute, known)}")
    return getattr(module, attribute)
