"""Code that a scenario names: ``package.module:name``, for a network, an attack, a defense, a data source or whatever else.

Such a name runs what it names as soon as it is looked up. Who writes a scenario and starts it knows what it names; who is handed
a run folder does not. A scenario out of a folder, or one that a Flower run brings, is asked here first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedleak.errors import ScenarioError
from fedleak.printable import one_line
from fedleak.scenario.schema import Scenario

ALLOW = "--allow-code"
"""The option of the command line that lets a folder's own names be imported."""

RUN_CONFIG = "allow-code"
"""The key of a Flower run's configuration that does the same."""

_NO_CODE = frozenset({"name", "secret", "federation.superlink", "local.device"})
"""Keys that hold a colon and name no code."""
_SHOWN = 5  # names that the message lists
_LONGEST = 80  # characters of one


def code_of(scenario: Scenario, *sections: str) -> dict[str, str]:
    """Return every name of code in a scenario by its key, such as ``{"attacks[0].name": "mine:Attack"}``.

    Parameters
    ----------
    scenario : Scenario
        It is only read; nothing is imported.
    *sections : str
        The tables to look into; by default all.
    """
    table = scenario.model_dump(include=set(sections) or None)
    return {key: text for key, text in _texts(table, "") if ":" in text}


def refuse_code(scenario: Scenario, where: str, *sections: str, known: Collection[str] = (), allow: str = ALLOW) -> None:
    """Refuse a scenario that names code which nobody at hand has asked for.

    Parameters
    ----------
    scenario : Scenario
        Out of a folder, or brought by a run.
    where : str
        Where it is from, for the message.
    *sections : str
        The tables that count; by default all.
    known : collection of str
        Names that may be imported, because the scenario at hand has them too.
    allow : str
        How the others are allowed, for the message.

    Raises
    ------
    ScenarioError
        With one line that says what would be run.
    """
    unknown = {key: name for key, name in code_of(scenario, *sections).items() if name not in known}
    if unknown:
        shown = [f"{key} = '{one_line(name, _LONGEST)}'" for key, name in list(unknown.items())[:_SHOWN]]
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise ScenarioError(
            f"{where}: names code that would be run here: {', '.join(shown)}{more}; if you trust it, add {allow}"
            + (", or give the scenario file that names the same" if allow == ALLOW else "")
        )


def check_allowed(scenario: Scenario, config: Mapping[str, Any]) -> None:
    """Refuse a scenario that a Flower run brings with code in it, unless its run configuration allows that.

    Raises
    ------
    ScenarioError
        With one line that says what would be run.
    """
    if config.get(RUN_CONFIG, False) is not True:
        refuse_code(scenario, "scenario", allow=f"{RUN_CONFIG}=true to the run configuration")


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield all texts below a key but paths, with the keys that hold them; plugins' parameters may nest."""
    if key in _NO_CODE or isinstance(value, Path):
        return
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for inner, one in value.items():
            yield from _texts(one, f"{key}.{inner}" if key else str(inner))
    elif isinstance(value, list | tuple | set | frozenset):
        for number, one in enumerate(value):
            yield from _texts(one, f"{key}[{number}]")
