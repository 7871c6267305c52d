"""What happens during a run, told to whoever listens: the terminal, a notebook, a test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes
    ----------
    kind : str
        ``"round"``, ``"attack"``, ``"progress"``, ``"graded"``, ``"orders"`` (of an attack that is spread:
        how many are done and running), ``"problem"`` (a round could not be shown to an attack), ``"inference"`` (a row of what
        an update told without an image), ``"round-done"`` or ``"note"``.
    facts : dict
        What belongs to it, by name.
    """

    kind: str
    facts: dict[str, Any]


class Listener(Protocol):
    """Anything that takes events."""

    def __call__(self, event: Event) -> None:
        """Take one event; must be quick and must not raise."""


def silent(event: Event) -> None:
    """Ignore the event."""


MARK = "fedleak-event "
