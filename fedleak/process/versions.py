"""Which versions of Flower and PyTorch fedleak is tested with; any other is said in one line, and used."""

from __future__ import annotations

import re
from importlib.metadata import version

TESTED = {"flwr": ((1, 41), (1, 42)), "torch": ((2, 9), (2, 14))}
"""The oldest and the newest, as (major, minor)."""


def untested(installed: dict[str, str] | None = None) -> list[str]:
    """Return a line for each package whose version fedleak is not tested with.

    Parameters
    ----------
    installed : dict of str to str, optional
        Versions by package; by default those that are installed.

    Examples
    --------
    >>> untested({"flwr": "1.43.0", "torch": "2.14.1+cpu"})
    ['flwr 1.43.0 is not among the versions that fedleak is tested with, 1.41 to 1.42; if something fails, install one of those']
    """
    found = []
    for name, (oldest, newest) in TESTED.items():
        here = version(name) if installed is None else installed[name]
        match = re.match(r"(\d+)\.(\d+)", here)
        if match is None or not oldest <= (int(match[1]), int(match[2])) <= newest:
            low, high = (".".join(map(str, one)) for one in (oldest, newest))
            found.append(
                f"{name} {here} is not among the versions that fedleak is tested with, {low} to {high}; if something fails, "
                "install one of those"
            )
    return found
