"""Ends a deployment's services when whoever started them is gone without ending them: killed, or its terminal closed.

A process of its own is told the services' process groups over a pipe that only the starter holds; when the pipe ends without a
word of dismissal, the starter has died. Started as a file, without fedleak and its libraries.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

_GRACE = 10.0  # seconds that services are given to end
_DISMISSED = "dismissed"


class Guard:
    """Watches over process groups until it is dismissed; its process is started with the first of them."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def watch(self, group: int) -> None:
        """End this process group should this process die.

        Parameters
        ----------
        group : int
            Its number, which is that of the process that leads it.
        """
        if self._process is None:
            # In a session of its own, out of reach of a terminal's Ctrl-C and of its end.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                text=True,
            )
        self._tell(f"+{group}")

    def forget(self, group: int) -> None:
        """Leave this process group alone: it has ended, and its number may become another's."""
        if self._process is not None:
            self._tell(f"-{group}")

    def dismiss(self) -> None:
        """End the watch, and nothing else."""
        if self._process is not None:
            with suppress(BrokenPipeError):  # killed by somebody: then there is nobody to dismiss
                self._tell(_DISMISSED)
            self._process.communicate()
            self._process = None

    def _tell(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def keep_watch(lines: Iterable[str]) -> set[int]:
    """Return the process groups that are left to end when the lines do; none after a dismissal."""
    groups: set[int] = set()
    for line in lines:
        if line.strip() == _DISMISSED:
            return set()
        change = groups.add if line.startswith("+") else groups.discard
        change(int(line[1:]))
    return groups


def end(groups: Iterable[int], grace: float = _GRACE) -> None:
    """End process groups, gently first; those that are gone are passed over.

    Parameters
    ----------
    grace : float
        Seconds between SIGTERM and SIGKILL, at most.
    """
    left, deadline = set(groups), time.monotonic() + grace
    _signal(left, signal.SIGTERM)
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = _signal(left, 0)
    _signal(left, signal.SIGKILL)


def _signal(groups: Iterable[int], number: int) -> set[int]:
    """Send a signal to each group, and return those that are there."""
    found = set()
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, number)
            found.add(group)
    return found


if __name__ == "__main__":
    end(keep_watch(sys.stdin))
