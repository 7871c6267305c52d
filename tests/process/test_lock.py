"""One process at a time in a folder; a dead one holds nothing."""

import subprocess
import sys
import time

import pytest

from fedleak.errors import ScenarioError
from fedleak.process.lock import Lock

HOLD = """
import sys, time
from pathlib import Path
from fedleak.process.lock import Lock
with Lock(Path(sys.argv[1]), "x"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_refused_with_who_holds_it_and_a_killed_one_holds_nothing(tmp_path):
    path = tmp_path / "a" / "sweep.lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        busy = rf"at work there \(process {process.pid} on .*; wait for it"
        with pytest.raises(ScenarioError, match=busy), Lock(path, "at work there"):
            pass
    finally:
        process.kill()
        process.wait()
    with Lock(path, "at work there"):
        pass


def test_it_waits_for_a_holder_that_goes(tmp_path):
    path = tmp_path / "lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {process.pid}"])
    started = time.monotonic()
    with Lock(path, "x", patience=30):
        assert time.monotonic() - started < 20
    process.wait()


def test_it_can_be_taken_again_and_says_so_of_a_holder_without_a_note(tmp_path):
    path = tmp_path / "lock"
    path.write_text("\x00 torn")
    with Lock(path, "busy"), pytest.raises(ScenarioError, match="^busy .*; wait"), Lock(path, "busy"):
        pass
    with Lock(path, "busy"):
        path.write_text("torn")
        with pytest.raises(ScenarioError, match="^busy; wait"), Lock(path, "busy"):
            pass
