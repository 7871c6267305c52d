"""Plugins by name: those in fedleak's own packages, third parties' by entry point, and ``package.module:name``.

A plugin module registers what it defines with a decorator::

    @attacks.register
    class MyAttack(Attack):
        name = "my-attack"

Built-in modules are found by listing their package, so that adding a plugin touches no other file. Their names are read
from their source: a scenario that names three plugins imports those three, and not the libraries of all the others.
Another distribution adds its own through an entry point that names the module, in the group that is called like the
package: ``fedleak.attacks``, ``fedleak.attacks.labels``, ``fedleak.defenses``, ``fedleak.data`` or ``fedleak.models``.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from fedleak.errors import ScenarioError, nearest, told

BESIDE: list[str] = []
"""Folders in which ``package.module:name`` is looked for first. They come on the path when such a name is imported and no sooner:
whoever works in a folder that somebody else made must not import what lies there by the name of a library."""

T = TypeVar("T")
P = TypeVar("P", bound=Any)


@dataclass(frozen=True)
class Declared:
    """A plugin as its source declares it, known without importing it.

    Attributes
    ----------
    name : str
        By which a scenario names it.
    module, attribute : str
        Where it is to be had.
    document : str
        The docstring of its module, or else its own; as written.
    """

    name: str
    module: str
    attribute: str
    document: str

    @property
    def place(self) -> str:
        """``package.module:attribute``."""
        return f"{self.module}:{self.attribute}"


@dataclass(frozen=True)
class Declarations:
    """What the modules of a package declare.

    Attributes
    ----------
    plugins : dict of str to Declared
        By name.
    unread : tuple of str
        Modules that register something whose name cannot be read from their source; they must be imported to learn it.
    """

    plugins: dict[str, Declared]
    unread: tuple[str, ...]


class Registry(Generic[T]):
    """The plugins of one kind.

    Parameters
    ----------
    kind : str
        What one is called in messages, such as ``"attack"``.
    package : str
        The package whose modules are the built-in ones.
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
        """Register ``plugin`` under its ``name`` attribute; use as a decorator.

        Raises
        ------
        ScenarioError
            If the name is another plugin's already; a module that is imported again may replace its own.
        """
        place, taken = _place(plugin), None
        if plugin.name in self._plugins:
            taken = _place(self._plugins[plugin.name])
        elif not plugin.__module__.startswith(f"{self._package}."):
            built_in = declarations(self._package).plugins.get(plugin.name)
            taken = built_in.place if built_in else None
        if taken not in (None, place):
            raise ScenarioError(
                f"{self.kind} '{plugin.name}': the name of {place} is taken by {taken}; give one of them another name"
            )
        self._plugins[plugin.name] = plugin
        return plugin

    def names(self) -> list[str]:
        """Return all known names, sorted; only what does not tell its name otherwise is imported for it."""
        self._load_unread()
        return sorted({*self._plugins, *declarations(self._package).plugins})

    def get(self, name: str) -> T:
        """Return the plugin called ``name``, or the object that ``package.module:name`` points to.

        Raises
        ------
        ScenarioError
            If there is none; the message names the nearest.
        """
        if name in self._plugins:
            return self._plugins[name]
        if ":" in name:
            found: T = import_object(name, f"{self.kind} '{name}'")
            self._check_base(found, name)
            return found
        if declared := declaration(self._package, name):
            built_in: T = getattr(importlib.import_module(declared.module), declared.attribute)
            return built_in
        self._load_unread()
        if name in self._plugins:
            return self._plugins[name]
        raise ScenarioError(f"unknown {self.kind} '{name}'; {nearest(name, self.names())}")

    def is_at_home(self, name: str) -> bool:
        """Whether any process finds the plugin called ``name``: it is built in, or another distribution's."""
        if declaration(self._package, name) is not None:
            return True
        module = getattr(self._plugins.get(name), "__module__", "")
        homes = {self._package, *(entry.module for entry in entry_points(group=self._package))}
        return any(module == home or module.startswith(f"{home}.") for home in homes)

    def _check_base(self, found: object, name: str) -> None:
        if self._base is None or (isinstance(found, type) and issubclass(found, self._base)):
            return
        base = f"{self._base.__module__}.{self._base.__name__}"
        raise ScenarioError(f"{self.kind} '{name}': is no subclass of {base}; derive the class from it")

    def _load_unread(self) -> None:
        """Import what must be imported to learn which plugins it has."""
        if self._loaded:
            return
        self._loaded = True
        for module in declarations(self._package).unread:
            importlib.import_module(module)
        for entry in entry_points(group=self._package):
            try:
                entry.load()
            except KeyboardInterrupt:
                raise
            # Another distribution's module may raise anything when it is imported, and must not end the program.
            except BaseException as error:
                owner = entry.dist.name if entry.dist else "an installed package"
                raise ScenarioError(
                    f"{self.kind} '{entry.name}' of {owner}: cannot be loaded ({told(error)}); repair or uninstall it"
                ) from error


def is_declared_whole(package: str) -> bool:
    """Whether :func:`declarations` knows every plugin of the package: none is hidden, and none another distribution's."""
    return not declarations(package).unread and not entry_points(group=package)


@cache
def declarations(package: str) -> Declarations:
    """Read from the source of a package's modules which plugins they declare; neither it nor they are imported.

    Raises
    ------
    ScenarioError
        If two of them have one name.
    """
    plugins: dict[str, Declared] = {}
    unread = []
    for module, source in _sources(package):
        found, whole = _read(package, module, source)
        for one in found:
            if (other := plugins.setdefault(one.name, one)) is not one:
                raise ScenarioError(f"'{one.name}': both {other.place} and {one.place} have this name; give one of them another")
        if not whole:
            unread.append(module)
    return Declarations(plugins, tuple(unread))


def declaration(package: str, name: str) -> Declared | None:
    """Return what declares ``name`` in the package: first the file of that name is looked into, and then all others."""
    own = name.replace("-", "_")
    for module, source in _sources(package, only=own) if own.isidentifier() else ():
        for one in _read(package, module, source)[0]:
            if one.name == name:
                return one
    return declarations(package).plugins.get(name)


def _sources(package: str, only: str | None = None) -> Iterator[tuple[str, str | None]]:
    """Yield the modules right below ``package`` with their source; ``None`` where there is none."""
    spec = importlib.util.find_spec(package)
    for found in pkgutil.iter_modules(spec.submodule_search_locations if spec else None):
        if only in (None, found.name):
            module = f"{package}.{found.name}"
            loader: Any = found.module_finder.find_spec(module, None).loader  # type: ignore[union-attr]
            yield module, loader.get_source(module)


def _read(package: str, module: str, source: str | None) -> tuple[list[Declared], bool]:
    """Return what a module declares, and whether that is all that it registers."""
    if source is None:
        return [], False
    registering = len(re.findall(r"\.register\b", source))
    if not registering:
        return [], True
    tree = ast.parse(source, module)
    registries = _registries(package, tree.body)
    found = []
    for node in tree.body:
        if not isinstance(node, ast.ClassDef) or not any(_registers(each, registries) for each in node.decorator_list):
            continue
        if (name := _name(node)) is not None:
            document = ast.get_docstring(tree, clean=False) or ast.get_docstring(node, clean=False) or ""
            found.append(Declared(name, module, node.name, document))
    return found, len(found) == registering


def _registries(package: str, body: Iterable[ast.stmt]) -> set[str]:
    """Return what a module has imported from the package's base: one of them is the registry."""
    homes = {(0, package), (0, f"{package}.base"), (1, None), (1, "base")}
    return {
        alias.asname or alias.name
        for node in body
        if isinstance(node, ast.ImportFrom) and (node.level, node.module) in homes
        for alias in node.names
    }


def _registers(decorator: ast.expr, registries: set[str]) -> bool:
    return (
        isinstance(decorator, ast.Attribute)
        and decorator.attr == "register"
        and isinstance(decorator.value, ast.Name)
        and decorator.value.id in registries
    )


def _name(node: ast.ClassDef) -> str | None:
    for line in node.body:
        targets = line.targets if isinstance(line, ast.Assign) else [line.target] if isinstance(line, ast.AnnAssign) else []
        for target in targets:
            value = line.value  # type: ignore[attr-defined]
            if isinstance(target, ast.Name) and target.id == "name" and isinstance(value, ast.Constant):
                return value.value if isinstance(value.value, str) else None
    return None


def _place(plugin: Any) -> str:
    return f"{plugin.__module__}:{plugin.__qualname__}"


def import_object(path: str, where: str) -> Any:
    """Import ``package.module:attribute``.

    Raises
    ------
    ScenarioError
        If the module cannot be imported, or the attribute does not exist.
    """
    module_name, _, attribute = path.partition(":")
    sys.path[:0] = [folder for folder in BESIDE if folder not in sys.path]
    try:
        module = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    except ModuleNotFoundError as error:
        raise ScenarioError(
            f"{where}: cannot import '{module_name}' ({error}); expected package.module:name, with the package in the "
            "present folder or on PYTHONPATH"
        ) from error
    # The user's module may raise anything when it is imported, and must not end the program.
    except BaseException as error:
        raise ScenarioError(f"{where}: importing '{module_name}' failed ({told(error)}); mend the module") from error
    if not hasattr(module, attribute):
        known = [name for name, _ in inspect.getmembers(module) if not name.startswith("_")]
        raise ScenarioError(f"{where}: '{module_name}' has no '{attribute}'; {nearest(attribute, known)}")
    return getattr(module, attribute)
