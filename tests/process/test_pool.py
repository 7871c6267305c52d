"""Worker processes: the next job before the last one's results, and a log that is its owner's alone."""

import os
import stat
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from fedleak.process.pool import Pool

WORK = """
def work(line, tell):
    print(line, flush=True)
"""


class Job:
    def __init__(self, name: str) -> None:
        self.name = name

    def to_json(self) -> str:
        return f'"{self.name}"'


class Told:
    def __init__(self) -> None:
        self.lines: list[tuple[str, ...]] = []

    def at(self, name: str, what: str) -> None:
        self.lines.append(("at", name))

    def done(self, name: str, error: str | None) -> None:
        self.lines.append(("done", name, error or ""))


def test_a_worker_is_at_its_next_job_while_the_last_ones_results_are_taken() -> None:
    told = Told()

    class Worker:
        job: Any = Job("first")

        def give(self, job: Any) -> None:
            self.job = job
            told.lines.append(("given", job.name))

    worker: Any = Worker()
    waiting: Any = deque([Job("second")])
    Pool._take(worker, "done", {"error": None}, waiting, told)
    Pool._take(worker, "done", {"error": "lost"}, waiting, told)
    assert told.lines == [("given", "second"), ("done", "first", ""), ("at", "second"), ("done", "second", "lost")]
    assert worker.job is None


@pytest.mark.slow
def test_what_workers_print_is_their_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    told, log = Told(), tmp_path / "workers.log"
    before = os.umask(0o022)
    try:
        Pool(2, log, "users_work:work").run([Job("a"), Job("b"), Job("c")], told)
    finally:
        os.umask(before)
    assert sorted(line[1:] for line in told.lines if line[0] == "done") == [("a", ""), ("b", ""), ("c", "")]
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert sorted(log.read_text().split()) == ['"a"', '"b"', '"c"']
