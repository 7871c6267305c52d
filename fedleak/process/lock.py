"""One process at a time: an advisory lock on a file, which the system releases when its holder dies, killed or not."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from fedleak.errors import ScenarioError
from fedleak.process.files import open_path

_PAUSE = 0.1  # seconds between two tries


class Lock:
    """Hold a lock file for as long as the ``with`` block runs.

    Parameters
    ----------
    path : Path
        The lock file; it stays, and means nothing while nobody holds it.
    what : str
        Who is in the way, for the message: ``"another sweep is at work in runs/x"``.
    patience : float
        Seconds to wait for another holder.
    advice : str
        What to do then, for the message.

    Raises
    ------
    ScenarioError
        On entering, if somebody else still holds it then; the message says which process on which machine.
    """

    def __init__(
        self,
        path: Path,
        what: str,
        patience: float = 0.0,
        advice: str = "wait for it, stop it, or choose another --out",
    ) -> None:
        self._path, self._what, self._patience, self._advice = path, what, patience, advice
        self._file: int | None = None

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open_path(self._path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise ScenarioError(
                f"{self._path}: cannot be held ({error.strerror}); expected an ordinary file that may be written, and no link; "
                "remove it, or choose another folder"
            ) from error
        deadline = time.monotonic() + self._patience
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() >= deadline:
                    holder = _holder(os.pread(file, 1000, 0))
                    os.close(file)
                    raise ScenarioError(f"{self._what}{holder}; {self._advice}") from error
                time.sleep(_PAUSE)
        note = {"process": os.getpid(), "machine": socket.gethostname(), "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"}
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(note).encode(), 0)
        self._file = file
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _holder(note: bytes) -> str:
    try:
        facts = json.loads(note)
        return f" (process {int(facts['process'])} on {facts['machine']}, since {facts['since']})"
    except (ValueError, KeyError, TypeError):
        return ""
