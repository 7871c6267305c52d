"""What was started in a start that breaks off ends with it, whatever level it is on; what was there before does not."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedleak.process.descendants import descendants, nothing_left_of_a_broken_start

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
# A process in a session of its own that starts another one, and says its number.
PARENT = f"import subprocess, time; print(subprocess.Popen({SLEEP!r}).pid, flush=True); time.sleep(600)"


def start() -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen([sys.executable, "-S", "-c", PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.stdout.close()
    return process, child


def test_children_and_theirs_are_found() -> None:
    process, child = start()
    try:
        assert {process.pid, child} <= descendants()
        assert os.getpid() not in descendants()
    finally:
        os.kill(child, 9)
        process.kill()
        process.wait()
    assert process.pid not in descendants()


def broken_off(started: list[tuple[subprocess.Popen[str], int]], error: BaseException) -> None:
    with nothing_left_of_a_broken_start():
        started.append(start())
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(15), RuntimeError()], ids=repr)
def test_a_start_that_breaks_off_leaves_nothing_and_what_was_there_stays(error: BaseException) -> None:
    there = subprocess.Popen(SLEEP)
    try:
        started = []
        with pytest.raises(type(error)):
            broken_off(started, error)
        [(process, child)] = started
        assert process.wait(10) == -9
        deadline = time.monotonic() + 10
        while running(child) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not running(child)
        assert there.poll() is None
    finally:
        there.kill()
        there.wait()


def test_a_start_that_succeeds_is_left_alone() -> None:
    with nothing_left_of_a_broken_start():
        process = subprocess.Popen(SLEEP)
    assert process.poll() is None
    process.kill()
    process.wait()


def running(number: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
