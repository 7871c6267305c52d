"""Tables of keys: read from a TOML file, and changed by ``key.path=value``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from fedleak.errors import ScenarioError

_MOST_BYTES = 2**20  # far above any that a person writes
_TOO_DEEP = "nested too deep to be read; no table of a scenario is deeper than four"


def read_table(path: Path, expected: str) -> dict[str, Any]:
    """Read a TOML file.

    Raises
    ------
    ScenarioError
        If the file is missing or is not TOML; one line says so, and what was ``expected``.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ScenarioError(f"{path}: more than {_MOST_BYTES:,} bytes; expected {expected}")
        return tomllib.loads(content.decode())
    except FileNotFoundError as error:
        raise ScenarioError(f"{path}: no such file; expected {expected}") from error
    # A path may hold what no file system takes, such as NUL.
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if isinstance(error, tomllib.TOMLDecodeError):
            raise ScenarioError(f"{path}: not valid TOML: {error}") from error
        reason = getattr(error, "strerror", None) or error
        raise ScenarioError(f"{path}: cannot be read ({reason}); expected {expected}") from error
    except RecursionError as error:
        raise ScenarioError(f"{path}: {_TOO_DEEP}") from error


def apply_override(table: dict[str, Any], override: str) -> None:
    """Set one key of ``table`` to what ``key.path=value`` says.

    Raises
    ------
    ScenarioError
        If it is no ``key.path=value``, or the path leads to no key.
    """
    key, sign, text = override.partition("=")
    if not sign or not all(part.strip() for part in key.split(".")):
        raise ScenarioError(f"--set {override}: expected key.path=value, such as --set federation.rounds=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except RecursionError as error:
        raise ScenarioError(f"--set {override[:60]}...: {_TOO_DEEP}") from error
    except ValueError:  # no TOML, or a number of more digits than Python reads
        value = text
    *parents, last = key.strip().split(".")
    here: Any = table
    for depth, part in enumerate(parents):
        where = ".".join(parents[: depth + 1])
        if isinstance(here, list):
            here = here[_index(here, part, override)]
        else:
            if part.isdigit():
                listed = ".".join(parents[:depth])
                raise ScenarioError(f"--set {override}: the file has no list '{listed}'; add an element to it there first")
            if isinstance(here.get(part), str):
                here[part] = {"name": here[part]}
            here = here.setdefault(part, {})
        if not isinstance(here, dict | list):
            raise ScenarioError(f"--set {override}: '{where}' is a value, not a table; it has no key '{last}'")
    if isinstance(here, list):
        here[_index(here, last, override)] = value
    else:
        here[last] = value


def _index(items: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        expected = f"expected 0 to {len(items) - 1}" if items else "add an element to the file first"
        raise ScenarioError(f"--set {override}: '{part}' is no index into a list of {len(items)}; {expected}")
    return int(part)
