"""All plugins beside each other: what each needs and is for, where it comes from; the text of ``fedleak list --wide``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from fedleak.cli.catalogue import KINDS, NO_COUNTER, document, registry_of

_LABELS = ("For", "Cost", "Broken by", "Source")
"""What of a plugin's docstring stands in the wide list, in this order."""
_ALL = (*_LABELS, "Formula", "Limits")


def part(document: str, label: str) -> str:
    """Return what a docstring says after ``label:``, up to the next label or the end of the paragraph; empty if nothing.

    Parameters
    ----------
    document : str
        With labels at the start of lines, such as ``Source:``, each followed by its text.
    label : str
        Such as ``"Source"``.
    """
    found: list[str] = []
    for line in document.splitlines():
        head, colon, rest = line.partition(": ")
        if colon and head == label:
            found = [rest]
        elif found and (not line.strip() or (colon and head in _ALL)):
            break
        elif found:
            found.append(line)
    return " ".join(" ".join(found).split())


def details() -> dict[str, dict[str, list[tuple[str, str]]]]:
    """Return, for each kind of plugin and each of its names, what it needs, what it is for, and where it comes from.

    Defenses say what they cost and what breaks them. Of each only what its docstring says; a heading and a line each.
    """
    registries = {kind: registry_of(kind) for kind in KINDS}
    found = {
        kind: {name: list(_details(registry.get(name))) for name in registry.names()} for kind, registry in registries.items()
    }
    for name in found["defenses"].keys() - found["counters"].keys():
        found["defenses"][name].append(("adaptive attacker", NO_COUNTER))
    return found


def _details(plugin: Any) -> Iterator[tuple[str, str]]:
    text_of = document(plugin)
    if inspect.isclass(plugin) and (needs := _needed(plugin)):
        yield "needs", needs
    for label in _LABELS:
        if text := part(text_of, label):
            yield label.lower(), text


def _needed(plugin: type[Any]) -> str:
    """Return the facts that an attack or a label rule requires, in words; empty for what requires nothing of the kind."""
    if kinds := getattr(plugin, "kinds", None):
        found = {kind: _facts(plugin.needs(kind)) for kind in sorted(kinds)}
        if len(set(found.values())) == 1:
            return next(iter(found.values()))
        return "; ".join(f"{facts} from {'gradients' if kind == 'gradient' else kind}" for kind, facts in found.items())
    if not hasattr(plugin, "requires"):
        return ""
    return _facts(plugin.requires) + (", a classifier with a bias" if getattr(plugin, "needs_bias", False) else "")


def _facts(needed: frozenset[Any]) -> str:
    # Who is not told how many images are behind an update takes them for one.
    return ", ".join(sorted(fact.value for fact in needed)) or "the update alone (for batches local-training)"
