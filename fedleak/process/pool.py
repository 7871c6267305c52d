"""Runs jobs side by side in worker processes of this machine, one thread each."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from fedleak.process.files import open_path

_THREADS = "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"
_LAST = 300  # characters of a dead worker's last words that its job's error repeats


class Job(Protocol):
    """A piece of work; travels as one line of JSON."""

    @property
    def name(self) -> str:
        """What the watcher knows it by."""

    def to_json(self) -> str:
        """Return what the workers' function reads."""


class Watcher(Protocol):
    """Told what happens to the jobs."""

    def at(self, name: str, what: str) -> None:
        """Take in a few words how far the job ``name`` is."""

    def done(self, name: str, error: str | None) -> None:
        """Take that the job ``name`` is finished, or why it is not."""


class Pool:
    """Workers for a list of jobs.

    Parameters
    ----------
    workers : int
        Processes, each with one job at a time.
    log : Path
        Takes what they print.
    function : str
        ``module:function`` that does a job; see :mod:`fedleak.process.worker`.
    threads : int
        Of each worker's computations.
    """

    def __init__(self, workers: int, log: Path, function: str, threads: int = 1) -> None:
        self._most = workers
        self._log = log
        self._function = function
        self._threads = threads

    def run(self, jobs: Iterable[Job], watcher: Watcher) -> None:
        """Run all jobs. An interrupt ends the workers at once: what they had written is kept.

        Parameters
        ----------
        jobs : iterable of Job
            Each is started when a worker is free.
        watcher : Watcher
            Told what happens, in this thread.
        """
        waiting = deque(jobs)
        selector = selectors.DefaultSelector()
        workers: set[_Worker] = set()
        try:
            for _ in range(min(self._most, len(waiting))):
                self._start(workers, selector)
            while waiting or any(worker.job for worker in workers):
                for key, _ in selector.select():
                    worker: _Worker = key.data
                    for kind, facts in worker.answers():
                        self._take(worker, kind, facts, waiting, watcher)
                    if worker.dead:
                        selector.unregister(worker.pipe)
                        workers.discard(worker)
                        worker.close()
                        if waiting:
                            self._start(workers, selector)
        finally:
            for worker in workers:
                worker.close()
            selector.close()

    def _start(self, workers: set[_Worker], selector: selectors.BaseSelector) -> None:
        worker = _Worker(self._log, self._function, self._threads)
        workers.add(worker)
        selector.register(worker.pipe, selectors.EVENT_READ, worker)

    @staticmethod
    def _take(worker: _Worker, kind: str, facts: dict[str, Any], waiting: deque[Job], watcher: Watcher) -> None:
        job = worker.job
        if kind == "at" and job:
            watcher.at(job.name, facts["what"])
        if kind in ("done", "died"):
            worker.job = None
        # Its next job first: what the watcher does with this one's results may take a while.
        if kind in ("ready", "done") and waiting:
            worker.give(waiting.popleft())
        if kind in ("done", "died"):
            if job:
                watcher.done(job.name, facts["error"])
            elif kind == "died" and waiting:
                # It died before it was ready, so the next would too.
                watcher.done(waiting.popleft().name, facts["error"])
        if kind in ("ready", "done") and worker.job:
            watcher.at(worker.job.name, "starting")


class _Worker:
    def __init__(self, log: Path, function: str, threads: int) -> None:
        self.job: Job | None = None
        self.dead = False
        self._log, self._from, self._unread = log, log.stat().st_size if log.exists() else 0, b""
        # A worker must import what this process can, such as the user's own model module.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        # Its owner's alone: what it holds may be of private images.
        with os.fdopen(open_path(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fedleak.process.worker", function],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env={**os.environ, **dict.fromkeys(_THREADS, str(threads)), "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is for whoever asked, who then ends the workers
            )
        assert self._process.stdout is not None
        self.pipe = self._process.stdout.fileno()

    def give(self, job: Job) -> None:
        """Send a job."""
        assert self._process.stdin is not None
        self.job = job
        with contextlib.suppress(BrokenPipeError):  # it has died, as its output will say
            self._process.stdin.write(f"{job.to_json()}\n".encode())
            self._process.stdin.flush()

    def answers(self) -> list[tuple[str, dict[str, Any]]]:
        """Return what the worker has said since; last of all that it died."""
        content = os.read(self.pipe, 65_536)
        if not content:
            self.dead = True
            return [("died", {"error": self._last_words()})]
        *lines, self._unread = (self._unread + content).split(b"\n")
        found = [json.loads(line) for line in lines]
        return [(facts.pop("kind"), facts) for facts in found]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _last_words(self) -> str:
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}; out of memory?" if code < 0 else f"exit code {code}"
        with self._log.open("rb") as file:
            file.seek(self._from)
            lines = file.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"its process died ({how}); {self._log} says why" + (f": {last[-_LAST:]}" if last else "")
