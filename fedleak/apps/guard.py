"""Runs what fedleak does inside an app so that whatever becomes of it, the app goes on as it would without.

Each piece of work has a thread of its own, which the app's thread waits for. So what the work raises, of whatever kind, ends the
work; and what the app's thread is sent meanwhile, such as Ctrl-C or Flower's own order to end, is the app's and reaches it. Work
that does not end in time is left behind: it puts nothing back that is the app's by then, and no more is begun.
"""

from __future__ import annotations

import contextvars
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from fedleak.errors import FedleakError
from fedleak.printable import ending, one_line
from fedleak.process import abandoned
from fedleak.seeding import generators_kept

T = TypeVar("T")
_LONGEST = 400  # characters of what went wrong
_LAST_WORDS = 10.0  # seconds that interrupted work is given to end
_PACKAGE = Path(__file__).parents[1]


def described(error: BaseException) -> str:
    """Return in one line what was raised; for what fedleak does not raise on purpose, where as well."""
    said = one_line(error)
    if isinstance(error, FedleakError):
        return ending(said, _LONGEST)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(_PACKAGE)]
    where = f" ({Path(frames[-1].filename).relative_to(_PACKAGE.parent)}:{frames[-1].lineno})" if frames else ""
    return ending(f"{type(error).__name__}: {said}" if said else type(error).__name__, _LONGEST) + where


def raised(error: BaseException) -> str:
    """Return in one line what the user's own code raised."""
    return ending(f"{type(error).__name__}: {one_line(error)}", _LONGEST)


class Guard:
    """Runs fedleak's work beside an app.

    Parameters
    ----------
    fault : callable
        Told which step failed, and how; may raise.

    Attributes
    ----------
    stopped : threading.Event
        Set when the app was interrupted, or work was left behind: what is at work is to end soon.
    lost : bool
        Whether work was left behind; then no more is begun.
    """

    def __init__(self, fault: Callable[[str, str], None]) -> None:
        self.stopped = threading.Event()
        self.lost = False
        self._fault = fault
        self._worker: threading.Thread | None = None
        self._ended = threading.Event()
        self._ended.set()
        self._clock: int | None = None

    def run(self, step: str, work: Callable[[], T], seconds: float | None = None, *, anyway: bool = False) -> T | None:
        """Return what ``work`` returns, or ``None`` where it fails; only what the app's own thread is sent is raised here.

        Parameters
        ----------
        step : str
            What it is, for the line.
        work : callable
            Called in a thread of its own.
        seconds : float, optional
            By the clock, after which it is left behind.
        anyway : bool
            Whether it is begun even after work was left behind.
        """
        if self.lost and not anyway:
            return None
        made: list[T] = []
        errors: list[BaseException] = []
        context = contextvars.copy_context()
        # Not Thread.join: interrupted by an exception, it takes the thread for ended in some versions of Python.
        ended = threading.Event()

        def call() -> None:
            self._clock = abandoned.own_clock()
            try:
                with generators_kept():
                    made.append(context.run(work))
            # Whatever it is: a plugin or a user's listener may raise any kind, and it is none of the app's.
            except BaseException as error:  # noqa: BLE001
                errors.append(error)
            finally:
                abandoned.say_ended()
                ended.set()

        self._worker, self._ended = threading.Thread(target=call, name=f"fedleak: {step}", daemon=True), ended
        self._worker.start()
        if not ended.wait(seconds):
            self._leave()
            self._tell(step, f"it had not ended after {seconds or 0:.0f} s, and is left behind; nothing is audited from here on")
            return None
        if errors:
            self._tell(step, described(errors.pop()))
        return made[0] if made else None

    def interrupt(self, end: Callable[[], None]) -> None:
        """Have what is still at work end, because the app was interrupted while it waited; ``end`` ends what it waits for."""
        if self._ended.is_set() or self.lost:
            return
        self.stopped.set()
        try:
            end()
        # What cannot be ended is left behind.
        except Exception as error:  # noqa: BLE001
            self._tell("end of the attack", described(error))
        if not self._ended.wait(_LAST_WORDS):
            self._leave()

    def _leave(self) -> None:
        self.lost = True
        self.stopped.set()
        if self._worker is not None:
            abandoned.abandon(self._worker, self._clock)

    def _tell(self, step: str, text: str) -> None:
        with suppress(Exception):  # a full disk, a closed terminal: then nothing is left to say it by
            self._fault(step, text)
