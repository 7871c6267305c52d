"""Ends an attack that goes on for longer than it was given, so that the round can go on without it.

This is for attacks that run in the process that asks, so that a debugger reaches them (``server.isolation = "none"``); all others
have a process of their own, which is ended (:mod:`fedleak.sandbox.apart`).

An attack gets a thread of its own. When its time is up, an exception is raised inside it, again and again for some seconds,
which ends a loop of Python, even one that catches it a few times. Two kinds cannot be stopped so: native code that blocks (a
sleep, a long operation of PyTorch), which is not interrupted but lets the others run meanwhile, and code that catches
everything, for ever. Then the round goes on and the thread is left behind; it is told to end until it does.

One that is left behind, or ends late, puts no random state and no setting back any more (:mod:`fedleak.process.abandoned`),
where that is done by this package's own blocks. A plugin that seeds the global generators by other means,
``torch.random.fork_rng`` or ``torch.manual_seed``, can still change, late, what a client draws in this process: use
``Seed.isolated``, or better a generator of your own (``rng.generator()``). Two things nothing in this process can survive:
native code that never returns and holds the interpreter's lock, and the system's own killer where memory runs out for the whole
machine. Then kill the run, and go on with ``--resume``. The command line ends at once, with the right exit code, where a thread
is left at its end; a program of your own that calls :func:`fedleak.run`, or Flower's own server process, may be aborted by it
at its end, after everything is written.
"""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from fedleak.errors import AttackError
from fedleak.process import abandoned

T = TypeVar("T")

FACTOR = 10.0
"""So many times its CPU budget an attack may take by the clock: a machine that others use as well is no hang."""

GRACE = 60.0  # seconds on top of that
_LAST_WORDS = 5.0  # seconds that it is given to end once told to
_AGAIN = 0.05  # seconds between two tellings


class _TimeIsUp(SystemExit):
    """Raised inside an attack; no ``Exception``, so that a loop that catches those ends too, and threads end by it silently."""


def wall_limit(budget_seconds: float | None, limit: float | None, updates: int = 1) -> float | None:
    """Return the seconds, by the clock, after which an attack is taken to hang; ``None`` for never.

    Parameters
    ----------
    budget_seconds : float, optional
        CPU seconds that the attack was granted for each update.
    limit : float, optional
        The scenario's ``server.attack_limit``, seconds for each update; it counts in place of what follows from the budget.
    updates : int
        How many it is given at once.
    """
    if limit is not None:
        return limit * updates
    return None if budget_seconds is None else FACTOR * budget_seconds * updates + GRACE


def limited(call: Callable[[], T], seconds: float | None) -> T:
    """Return what ``call`` returns, or raise what it raises.

    Parameters
    ----------
    call : callable
        Without a limit it is called here; otherwise in a thread of its own.
    seconds : float, optional
        By the clock.

    Raises
    ------
    AttackError
        If it has not ended by then.
    """
    if seconds is None:
        return call()
    values: list[T] = []
    errors: list[BaseException] = []
    clocks: list[int | None] = []

    def run() -> None:
        try:
            clocks.append(abandoned.own_clock())
            values.append(call())
        except BaseException as error:  # noqa: BLE001 (whatever it is, it is raised again where it belongs)
            errors.append(error)
        finally:
            abandoned.say_ended()

    worker = threading.Thread(target=run, name="attack", daemon=True)
    worker.start()
    try:
        worker.join(seconds)
    except BaseException:  # an interrupt must not leave it running
        _stop(worker, clocks)
        raise
    if worker.is_alive():
        how = (
            "was stopped"
            if _stop(worker, clocks)
            else "could not be stopped (native code, or code that catches everything), so its thread is left behind"
        )
        raise AttackError(f"the attack hangs: it had not ended after {seconds:g} s, and {how}")
    if errors:
        raise errors.pop()  # held by nothing else here: its traceback keeps all that the attack held in memory
    return values[0]


def _stop(worker: threading.Thread, clocks: list[int | None]) -> bool:
    """End the thread, and say whether it did end; otherwise it is abandoned, and told to end for as long as it lives."""
    ended = False
    try:
        ended = _end(worker, _LAST_WORDS)
    finally:  # an interrupt must not let it go on unnoticed
        if not ended:
            abandoned.abandon(worker, clocks[0] if clocks else None)
            threading.Thread(target=_end, args=(worker, math.inf), name="end-of-attack", daemon=True).start()
    return ended


def _end(worker: threading.Thread, seconds: float) -> bool:
    """Raise in the thread until it ends, and say whether it did within so many seconds."""
    deadline = time.monotonic() + seconds
    while worker.is_alive() and time.monotonic() < deadline:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident or 0), ctypes.py_object(_TimeIsUp))
        worker.join(_AGAIN)
    return not worker.is_alive()
