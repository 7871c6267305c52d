"""Plugins by name: those in fedleak's own packages, third parties' by entry point, and ``package.module:name``.

A plugin module registers what it defines with a decorator::

    @attacks.register
    class MyAttack(Attack):
        name = "my-attack"

Built-in modules are found by listing their package, so that adding a plugin touches no other file. Another
distribution adds its own through an entry point that names the module, in the group that is called like the package:
``fedleak.attacks``, ``fedleak.attacks.labels``, ``fedleak.defenses``, ``fedleak.data`` or ``fedleak.models``.
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
    base : type, optional
        What a plugin given as ``package.module:name`` must be a subclass of; by default it may be anything.
    """

    def __init__(self, kind: str, package: str, base: type | None = None) -> None:
        self.kind = kind
        self._base = base
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
            self._check_base(found, name)
            return found
        raise ScenarioError(f"unknown {self.kind} '{name}'; {nearest(name, self._plugins)}")

    def _check_base(self, found: object, name: str) -> None:
        if self._base is None or (isinstance(found, type) and issubclass(found, self._base)):
            return
        base = f"{self._base.__module__}.{self._base.__name__}"
        raise ScenarioError(f"{self.kind} '{name}': is no subclass of {base}; derive the class from it")

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__, f"{self._package}."):
            importlib.import_module(module.name)
        for entry in entry_points(group=self._package):
            try:
                entry.load()
            # Another distribution's module may raise anything when it is imported.
            except Exception as error:  # noqa: BLE001
                owner = entry.dist.name if entry.dist else "an installed package"
                raise ScenarioError(
                    f"{self.kind} '{entry.name}' of {owner}: cannot be loaded ({_said(error)}); repair or uninstall it"
                ) from error


def import_object(path: str, where: str) -> Any:
    """Import ``package.module:attribute``.

    Raises
    ------
    ScenarioError
        If the module cannot be imported, or the attribute does not exist.
    """
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ScenarioError(
            f"{where}: cannot import '{module_name}' ({error}); expected package.module:name, with the package in the "
            "present folder or on PYTHONPATH"
        ) from error
    # The user's module may raise anything when it is imported.
    except Exception as error:  # noqa: BLE001
        raise ScenarioError(f"{where}: importing '{module_name}' failed ({_said(error)}); mend the module") from error
    if not hasattr(module, attribute):
        known = [name for name, _ in inspect.getmembers(module) if not name.startswith("_")]
        raise ScenarioError(f"{where}: '{module_name}' has no '{attribute}'; {nearest(attribute, known)}")
    return getattr(module, attribute)


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
