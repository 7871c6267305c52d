"""Errors that fedleak raises on purpose; each message says what came, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedleakError(Exception):
    """Base of all errors raised on purpose."""


class ScenarioError(FedleakError):
    """The scenario, a plugin's parameters or an input file is wrong; nothing has started (exit code 2)."""


class AttackError(FedleakError):
    """An attack cannot go on; recorded as that attack's result, the round continues."""


class DefenseError(FedleakError):
    """A defense could not be applied; the client sends an error instead of its update."""


class ReplyError(FedleakError):
    """A client's reply is not one that the protocol allows."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'? Known: a, b"`` for an unknown ``name`` among ``known`` names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(names)}"
