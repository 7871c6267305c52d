"""A worker process: reads jobs from its standard input, one line each, and answers in lines of JSON.

Started as ``python -m fedleak.process.worker MODULE:FUNCTION``, so that it needs nothing of the program that asks: neither
its ``__main__`` nor its threads. The function is given a job's line and what to tell in a few words how far it is. The
worker ends when its input does, at once and in the middle of a job too: then whoever asked is gone.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

from fedleak.errors import FedleakError, told
from fedleak.printable import quiet_log

Work = Callable[[str, Callable[[str], None]], None]


def main() -> None:
    """Serve jobs until the input ends."""
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    jobs: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    module, _, function = sys.argv[1].partition(":")
    work: Work = getattr(importlib.import_module(module), function)
    quiet_log()
    _answer(answers, kind="ready")
    while True:
        _serve(work, jobs.get(), answers)


def _read(jobs: queue.Queue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(1)


def _serve(work: Work, job: str, answers: TextIO) -> None:
    error: str | None = None
    try:
        work(job, lambda what: _answer(answers, kind="at", what=what))
    except FedleakError as failure:
        error = str(failure)
    except KeyboardInterrupt:
        raise
    # One job must not end the others, whatever its plugins raise; the reason becomes its row.
    except BaseException as failure:  # noqa: BLE001
        error = told(failure)
    _answer(answers, kind="done", error=error)


def _answer(answers: TextIO, **facts: Any) -> None:
    answers.write(json.dumps(facts) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
