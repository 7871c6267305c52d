"""A worker process of a sweep: reads jobs from its standard input, one line each, and answers in lines of JSON.

Started as ``python -m fedleak.sweeps.worker``, so that it needs nothing of the program that runs the sweep: neither its
``__main__`` nor its threads. It ends when its input does, at once and in the middle of a cell too: then whoever asked is
gone, and a cell half-done goes on from its last whole round.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import Any, TextIO

from fedleak.errors import FedleakError
from fedleak.sweeps.cell import Job, run_cell


def main() -> None:
    """Serve jobs until the input ends."""
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    jobs: queue.Queue[Job] = queue.Queue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    _quieten()
    _answer(answers, kind="ready")
    while True:
        _serve(jobs.get(), answers)


def _read(jobs: queue.Queue[Job]) -> None:
    for line in sys.stdin:
        jobs.put(Job.from_json(line))
    os._exit(1)


def _serve(job: Job, answers: TextIO) -> None:
    error: str | None = None
    try:
        run_cell(job, lambda what: _answer(answers, kind="at", what=what))
    except FedleakError as failure:
        error = str(failure)
    # One cell must not end the others, whatever its plugins raise; the reason becomes its row.
    except Exception as failure:  # noqa: BLE001
        error = f"{type(failure).__name__}: {failure}"
    _answer(answers, kind="done", error=error)


def _answer(answers: TextIO, **facts: Any) -> None:
    answers.write(json.dumps(facts) + "\n")
    answers.flush()


def _quieten() -> None:
    import logging

    import flwr.app  # noqa: F401 (its import sets the level, so it must come first)

    logging.getLogger("flwr").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
