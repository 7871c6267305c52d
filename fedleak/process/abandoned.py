"""Threads that could not be stopped: what they do later must not reach the others, and is not charged to them.

Whoever puts process-wide state back after a block asks here first, with :data:`LOCK` held, whether the thread that entered the
block has been abandoned meanwhile: then the state belongs to those that went on without it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass

LOCK = threading.RLock()
"""Held while process-wide state is put back: a thread is abandoned before that or after it. It is reentrant because garbage that
is collected meanwhile may hold such a block, which ends then."""

_PATIENCE = 5.0  # seconds to wait for the lock: a thread that hangs while it holds that must not hang the others


@dataclass
class _Left:
    """The clock of an abandoned thread, what it showed then, and the CPU seconds that it has taken since."""

    clock: int | None
    before: float = 0.0
    since: float = 0.0

    def read(self) -> float:
        """Return the CPU seconds since it was abandoned, as far as they can be told."""
        if self.clock is not None:
            try:
                self.since = time.clock_gettime(self.clock) - self.before
            except OSError:  # the thread has ended, and its clock with it
                self.clock = None
        return self.since


_left: dict[threading.Thread, _Left] = {}  # they stay when they have ended: what they took is still in the process's clock
_latest = 0.0  # what the clock showed last: systems update the clocks of a thread and of its process at different times


def own_clock() -> int | None:
    """Return the clock of this thread's CPU seconds, which others can read too; ``None`` where the system has none."""
    # On behalf of another thread it cannot be asked for safely: if that has just ended, the process may crash.
    return time.pthread_getcpuclockid(threading.get_ident()) if sys.platform == "linux" else None


def abandon(thread: threading.Thread, clock: int | None) -> None:
    """Have ``thread`` put no process-wide state back any more, and charge what it takes from now on to nobody.

    Parameters
    ----------
    thread : Thread
        One that cannot be stopped.
    clock : int, optional
        What :func:`own_clock` returned in it.
    """
    global _latest
    held = LOCK.acquire(timeout=_PATIENCE)
    try:
        left = _Left(clock)
        left.before, left.since = left.read(), 0.0
        _latest = max(_latest, time.process_time() - _taken())
        _left[thread] = left
    finally:
        if held:
            LOCK.release()


def is_abandoned(thread: threading.Thread) -> bool:
    """Say whether ``thread`` has been abandoned, and may have ended since."""
    return thread in _left


def say_ended() -> None:
    """Take down what this thread has taken, if it has been abandoned; the last that it does."""
    with LOCK:
        if left := _left.get(threading.current_thread()):
            left.read()
            left.clock = None


def _taken() -> float:
    return sum(left.read() for left in _left.values())


def process_time() -> float:
    """Return the CPU seconds of this process, as ``time.process_time`` does, without those of abandoned threads.

    Only what they take themselves is left out. The helpers of one that computes on several threads are counted still, and on
    systems other than Linux, where one thread cannot read another's clock, so are they. Such a thread itself is told all.
    """
    global _latest
    if not _left or threading.current_thread() in _left:
        return time.process_time()
    with LOCK:
        _latest = max(_latest, time.process_time() - _taken())
        return _latest


def leave(end: BaseException) -> None:
    """End the process here and now if an abandoned thread is alive; otherwise return.

    One that comes back from native code while the interpreter shuts down is made to end in the middle of it. That aborts the
    process, and the exit code is lost.

    Parameters
    ----------
    end : BaseException
        What the program ends by: a ``SystemExit`` with the exit code, or an error that nobody has caught.
    """
    if not any(thread.is_alive() for thread in list(_left)):
        return
    code = 1
    if not isinstance(end, SystemExit):
        traceback.print_exception(end)
    elif end.code is None or isinstance(end.code, int):
        code = end.code or 0
    else:
        print(end.code, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # whoever reads it may have gone
            stream.flush()
    os._exit(code)
