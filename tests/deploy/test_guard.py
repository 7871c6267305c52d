"""The guard ends process groups when its starter is gone, and nothing that it was told to leave alone."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from fedleak.deploy.guard import Guard, end, keep_watch

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(SLEEP, start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_what_is_left_to_end_is_what_was_not_forgotten_and_nothing_after_a_dismissal() -> None:
    assert keep_watch(["+10\n", "+11\n", "-10\n", "+12\n"]) == {11, 12}
    assert keep_watch(["+10\n", "dismissed\n"]) == set()
    assert keep_watch([]) == set()


def test_a_group_that_does_not_heed_the_first_signal_is_killed(sleeper: subprocess.Popen[bytes]) -> None:
    stubborn = subprocess.Popen([sys.executable, "-S", "-c", STUBBORN], start_new_session=True, stdout=subprocess.PIPE)
    assert stubborn.stdout is not None
    assert stubborn.stdout.readline() == b"ready\n"
    gone = subprocess.Popen([sys.executable, "-S", "-c", ""], start_new_session=True)
    gone.wait()
    end([sleeper.pid, stubborn.pid, gone.pid], grace=0.5)
    assert (sleeper.wait(10), stubborn.wait(10)) == (-signal.SIGTERM, -signal.SIGKILL)
    stubborn.stdout.close()


@pytest.mark.parametrize("dismissed", [False, True])
def test_a_starter_that_is_killed_takes_what_is_watched_along_unless_it_dismissed_the_guard(dismissed: bool) -> None:
    starter = f"""
import subprocess, time
from fedleak.deploy.guard import Guard
guard, watched = Guard(), subprocess.Popen({SLEEP!r}, stdout=subprocess.DEVNULL, start_new_session=True)
guard.watch(watched.pid)
if {dismissed}:
    guard.dismiss()
print(watched.pid, flush=True)
time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    group = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    try:
        deadline = time.monotonic() + (1 if dismissed else 20)
        while running(group) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert running(group) == dismissed
    finally:
        end([group], grace=0)


def running(group: int) -> bool:
    """Whether a process is there and no zombie, which nobody may take away where there is no init."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(group)], capture_output=True, text=True).stdout.strip()
    return bool(found) and not found.startswith("Z")


def test_a_guard_without_work_starts_nothing() -> None:
    guard = Guard()
    guard.forget(1)
    guard.dismiss()
    assert guard._process is None
