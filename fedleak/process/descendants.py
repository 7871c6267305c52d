"""The processes below this one, and an end to those that something started and was interrupted before it knew them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PROC = Path("/proc")


def descendants() -> set[int]:
    """Return the numbers of all processes that this one started, and those started; none where there is no /proc."""
    children: dict[int, set[int]] = {}
    for place in _PROC.glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            # The command's name stands in brackets and may hold anything, brackets too.
            parent = int((place / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, set()).add(int(place.name))
    found: set[int] = set()
    left = {os.getpid()}
    while left:
        left = set().union(*(children.get(one, set()) for one in left)) - found
        found |= left
    return found


@contextmanager
def nothing_left_of_a_broken_start() -> Iterator[None]:
    """Kill what was started inside the block, and what that started, if the block ends with an exception or an interrupt.

    Ray learns of its processes late: interrupted before, it leaves some to themselves, which may live on for minutes.
    """
    before = descendants()
    try:
        yield
    except BaseException:  # an interrupt above all; it is raised again
        started: set[int] = set()
        while new := descendants() - before - started:
            _signal(new, signal.SIGSTOP)  # so that they start no more while the others are looked for
            started |= new
        _signal(started, signal.SIGKILL)
        raise


def _signal(processes: set[int], number: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)
