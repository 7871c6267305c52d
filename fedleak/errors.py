"""Errors that fedleak raises on purpose; each message says what came, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

_LISTED = 12  # names that a message lists in full
_COMPARED = 100  # characters of a name: comparing takes their square
_CLOSEST = 5  # names that it lists where there are more


class FedleakError(Exception):
    """Base of all errors raised on purpose."""


class ScenarioError(FedleakError):
    """The scenario, a plugin's parameters or an input file is wrong; nothing has started (exit code 2)."""


class ParameterError(ScenarioError):
    """A parameter of a plugin is wrong.

    Parameters
    ----------
    owner : str
        Whose parameter, such as ``"attack 'dlg'"``.
    key : str
        Which one; a path where the value is nested, and empty where all are at odds.
    problem : str
        What is wrong with it.
    known : sequence of str, optional
        For an unknown key, those that the owner knows.
    """

    def __init__(self, owner: str, key: str, problem: str, known: Iterable[str] | None = None) -> None:
        self.owner, self.key, self.problem = owner, key, problem
        self.known = None if known is None else tuple(known)
        super().__init__(": ".join(part for part in (owner, shortened(key), self._text(())) if part))

    def at(self, where: str, also: Iterable[str] = ()) -> ScenarioError:
        """Return the error with the key's full path.

        Parameters
        ----------
        where : str
            The owner's table in the scenario, such as ``"attacks[0]"``.
        also : iterable of str
            Keys that the table may hold beside the owner's own.
        """
        path = f"{where}.{shortened(self.key)}" if self.key else where
        return ScenarioError(f"{path}: {self._text(also)}")

    def _text(self, also: Iterable[str]) -> str:
        if self.known is None:
            return self.problem
        return f"{self.problem} for {self.owner}; {nearest(self.key, [*self.known, *also])}"


class AttackError(FedleakError):
    """An attack cannot go on; recorded as that attack's result, the round continues."""


class DefenseError(FedleakError):
    """A defense could not be applied; the client sends an error instead of its update."""


class ReplyError(FedleakError):
    """A client's reply is not one that the protocol allows."""


@contextmanager
def ends_contained(whose: str, kind: type[FedleakError] = ScenarioError) -> Iterator[None]:
    """Have code by anybody not end the program: raise an error in place of ``SystemExit`` and its like.

    A plugin that calls ``sys.exit()`` would end a run with exit code 0, as if all were done. Exceptions pass as they are, and so
    does Ctrl-C.

    Parameters
    ----------
    whose : str
        What the code is, for the message.
    kind : type
        Of the error raised.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise kind(f"{whose}: {told(error)}") from error


def told(error: BaseException) -> str:
    """Return in one line what somebody's code raised, or that it asked for the program's end."""
    if isinstance(error, SystemExit):
        return f"SystemExit: it called sys.exit({error.code!r:.60})"
    return " ".join(f"{type(error).__name__}: {error}".split())


def shortened(key: str) -> str:
    """Return a key as a message names it: one of thousands of characters would hide what is wrong with it."""
    return key if len(key) <= _COMPARED else f"{key[:_COMPARED]}..."


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"did you mean 'x'? Known: a, b"`` for an unknown ``name``; of many known names only the closest."""
    names = sorted(set(known))
    if not names:
        return "none is known"
    close = closest(name, names)
    hint = f"did you mean '{close}'? Known" if close else "known"
    if len(names) <= _LISTED:
        return f"{hint}: {', '.join(names)}"
    by_likeness = sorted(names, key=lambda other: -_likeness(name, other))[:_CLOSEST]
    return f"{hint} (the closest of {len(names)}): {', '.join(by_likeness)}"


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the one of ``known`` that ``name`` was probably meant to be, or ``None``; capitals do not matter."""
    best = max(sorted(known), key=lambda other: _likeness(name, other), default=None)
    return best if best is not None and _likeness(name, best) >= 0.5 else None


def _likeness(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, name[:_COMPARED].casefold(), other[:_COMPARED].casefold()).ratio()
