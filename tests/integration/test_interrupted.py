"""Whatever ends a run or a deployment, at whatever moment, none of the processes that it started lives on."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from fedleak.deploy.services import free_port

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")]

PATIENCE = 240.0  # seconds until all is up, on a machine with other work
GONE = 120.0  # seconds until the last process is gone, on a machine with other work
RUN = 'name = "x"\ndata = { image_size = 8 }\nmodel = { name = "mlp", hidden = [4] }\n'
RAY = RUN + 'federation = { clients = 2, rounds = 100000, engine = "ray" }\n'


def _heeding() -> None:
    """Heed the signals that whoever started the tests may have ignored, as a shell does for what it runs in the background."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Marked:
    """A command and all that it starts, known by a mark in their environment, in whatever session they are."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder = folder
        self._mark = f"FEDLEAK_TEST_MARK={uuid.uuid4().hex}"
        name, value = self._mark.split("=")
        self._told = folder / "told"
        with self._told.open("wb") as out:
            command = [sys.executable, "-m", "fedleak", *words]
            environment = os.environ | {name: value}
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_heeding,
            )

    @property
    def told(self) -> str:
        return self._told.read_text(errors="replace")

    def alive(self) -> dict[int, str]:
        """Return the processes that carry the mark, with their command lines; a zombie carries nothing."""
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if self._mark.encode() in (place / "environ").read_bytes().split(b"\0"):
                    found[int(place.name)] = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        return found

    def wait_until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not happened():
            assert self.process.poll() is None, self.told
            assert time.monotonic() < deadline, self.told
            time.sleep(0.1)

    def check_gone(self) -> None:
        deadline = time.monotonic() + GONE
        while (left := self.alive()) and time.monotonic() < deadline:
            self.process.poll()
            time.sleep(0.2)
        assert not left, left
        assert self.process.wait(5) != 0 or "Stopping" in self.told

    def kill(self) -> None:
        for number in self.alive():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def marked(tmp_path, request):
    def start(*words: str) -> Marked:
        started = Marked(tmp_path, *words)
        request.addfinalizer(started.kill)
        return started

    return start


def has(run: Marked, part: str) -> bool:
    return any(part in line for line in run.alive().values())


def rounds(folder: Path) -> int:
    return sum(path.read_text().count("\n") for path in folder.glob("runs/*/rounds.jsonl"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize("moment", ["as Ray starts", "in training"])
def test_a_run_on_ray_leaves_no_process_behind(marked, tmp_path, moment, number) -> None:
    (tmp_path / "s.toml").write_text(RAY)
    run = marked("run", "s.toml", "--quiet")
    run.wait_until(lambda: has(run, "raylet") if moment == "as Ray starts" else rounds(tmp_path) > 2)
    assert len(run.alive()) > 2
    run.process.send_signal(number)
    run.check_gone()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize("moment", ["as the SuperLink starts", "in training"])
def test_a_deployment_leaves_no_service_behind(marked, tmp_path, moment, number) -> None:
    up = marked("deploy", "up", "--insecure", "--clients", "2", "--port", str(free_port()))
    if moment == "in training":
        up.wait_until(lambda: "connected" in up.told)
        (tmp_path / "s.toml").write_text(RUN + "federation = { clients = 2, rounds = 100000 }\n")
        submit = [sys.executable, "-m", "fedleak", "deploy", "submit", "s.toml", "--quiet"]
        with subprocess.Popen(submit, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as submitted:
            up.wait_until(lambda: rounds(tmp_path) > 1)
            submitted.kill()
        assert has(up, "flwr-serverapp")
    else:
        up.wait_until(lambda: has(up, "flower-superlink"))
    assert len(up.alive()) > 1
    up.process.send_signal(number)
    up.check_gone()
