"""A real deployment on this machine: one client's network is cut for a minute; one client is ten times slower."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedleak.data.parts import write_shards
from fedleak.deploy.certificates import make_certificates
from fedleak.deploy.services import Layout, Services
from fedleak.events import Event
from fedleak.experiment import run as api
from fedleak.report.faults import faults
from fedleak.runs.folder import RunFolder
from fedleak.runs.records import read_records
from fedleak.scenario.schema import Scenario, parse_scenario

pytestmark = pytest.mark.slow

CUT = 60.0  # seconds
_PIECE = 2**16


class Relay:
    """Passes TCP connections on to a port of this machine; while it is cut, nothing passes and nothing is refused.

    That is what a client sees whose network is gone: no answer and no error, and its packets arrive later or never.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._passes = threading.Event()
        self._passes.set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.passed = 0
        self._start(self._accept)

    def cut(self) -> None:
        self._passes.clear()

    def mend(self) -> None:
        self._passes.set()

    def close(self) -> None:
        self.mend()
        self._server.close()

    def _start(self, target: Callable[..., None], *arguments: socket.socket) -> None:
        threading.Thread(target=target, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                self._passes.wait()
                far = socket.create_connection(("127.0.0.1", self._to))
                self._start(self._pump, near, far)
                self._start(self._pump, far, near)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE):
                self._passes.wait()
                target.sendall(piece)
                self.passed += len(piece)
            target.shutdown(socket.SHUT_WR)


# The user's own network, on which a step takes so many seconds; ten times as many on the machine that SLOWER says it of.
OWN = """
import os, time
from torch import nn


class Slow(nn.Module):
    def __init__(self, seconds, pixels, classes):
        super().__init__()
        self.flat = nn.Flatten()
        self.seconds, self.fc = seconds * float(os.environ.get("SLOWER", "1")), nn.Linear(pixels, classes)

    def forward(self, images):
        if self.training:
            time.sleep(self.seconds)
        return self.fc(self.flat(images))


def net(input_shape, num_classes, seconds=0.0):
    return Slow(seconds, input_shape[0] * input_shape[1] * input_shape[2], num_classes)
"""


def scenario(services: Services | None = None, seconds: float = 0.0, **federation: Any) -> Scenario:
    base: dict[str, Any] = {"clients": 2, "rounds": 2, "timeout": 90.0} | federation
    if services is not None:
        base |= {"engine": "deployment", "superlink": json.loads(services.superlink.model_dump_json())}
    model = {"name": "own_network:net", "seconds": seconds}
    attacks = [{"name": "closed-form"}]
    return parse_scenario({"name": "network", "data": {"image_size": 8}, "model": model, "federation": base, "attacks": attacks})


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Services:
    """A deployment over TLS, with shards; not started yet."""
    (tmp_path / "own_network.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    make_certificates(tmp_path / "keys", 2)
    plain = scenario()
    write_shards(plain.data, 2, plain.seed, tmp_path / "shards", plain.secret)
    return Services(Layout(tmp_path / "keys", tmp_path / "runs", tmp_path / "shards"))


def test_a_client_whose_network_is_cut_for_a_minute_is_back_by_itself(services: Services, tmp_path: Path) -> None:
    relay = Relay(int(services.superlink.address.rpartition(":")[2]))
    node = services.services["client-1"]
    node.command = [f"127.0.0.1:{relay.port}" if part == services.superlink.address else part for part in node.command]
    mender = threading.Timer(CUT, relay.mend)
    away: list[int] = []

    def follow(event: Event) -> None:
        """Cut the network after a round; end the run when the client has been back for two, however many that takes."""
        if event.kind != "round-done" or event.facts["round"] == 0:
            return
        if event.facts["failures"]:
            away.append(event.facts["round"])
        if event.facts["round"] == 1:
            relay.cut()
            mender.start()
        elif away and event.facts["round"] > away[-1] + 1:
            raise KeyboardInterrupt

    out = tmp_path / "run"
    with services:
        try:
            with pytest.raises(KeyboardInterrupt):
                api.run(scenario(services, rounds=80, timeout=40.0), out=out, device="cpu", listener=follow)
        finally:
            mender.cancel()
            relay.close()
        wait(lambda: (out / "report.html").exists(), 60.0)
        assert not [service.name for service in services.services.values() if service.ended]

    assert relay.passed > 0
    folder = RunFolder(out)
    rows = folder.rows("rounds.jsonl")
    last = away[-1] + 2
    assert [row["round"] for row in rows][: last + 1] == list(range(last + 1))
    assert away == list(range(2, 2 + len(away)))
    for server_round in away:
        [failure] = rows[server_round]["failures"]
        assert failure["client"] == 1
        assert failure["reason"].startswith("no reply")
    results = [row for row in folder.rows("reconstructions.jsonl") if row["round"] <= last]
    lost = [(row["round"], row["client"]) for row in results if row["error"]]
    assert lost == [(server_round, 1) for server_round in away]
    expected = [(number, client) for number in range(1, last + 1) for client in (0, 1)]
    assert sorted({(row["round"], row["client"]) for row in results}) == expected
    captures = [path.stem for path in folder.captures()][: len(expected) - len(lost)]
    assert captures == [f"r{number:03d}-c{client:03d}" for number, client in expected if (number, client) not in lost]
    fault = faults(read_records(out))[0]
    assert (fault.rounds, fault.clients) == (tuple(away), (1,))
    assert "went on without it after federation.timeout, 40.0 s" in fault.did
    assert f"it took part again in round {away[-1] + 1}" in fault.did
    assert fault.did in (out / "report.html").read_text()


def wait(done: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.3)


def test_a_client_that_is_ten_times_slower_is_waited_for_as_long_as_the_scenario_says(services: Services, tmp_path: Path) -> None:
    services.services["client-1"].environment["SLOWER"] = "10"
    with services:
        waited = api.run(scenario(services, seconds=2.0), out=tmp_path / "waited", device="cpu")
        went_on = api.run(scenario(services, seconds=6.0, timeout=45.0), out=tmp_path / "went-on", device="cpu")
        assert not [service.name for service in services.services.values() if service.ended]

    rows = RunFolder(waited.path).rows("rounds.jsonl")[1:]
    assert [row["round"] for row in rows] == [1, 2]
    for row in rows:
        assert row["failures"] == []
        slow, fast = (row["by_client"][client]["seconds"] for client in ("1", "0"))
        assert slow > 20.0
        assert slow > 5 * fast
    [fault] = faults(read_records(waited.path))
    assert (fault.rounds, fault.clients) == ((1, 2), (1,))
    assert fault.what.startswith("Was slow: ")
    assert fault.what in waited.report.read_text()

    rows = RunFolder(went_on.path).rows("rounds.jsonl")[1:]
    assert [row["round"] for row in rows] == [1, 2]
    assert [failure["client"] for failure in rows[0]["failures"]] == [1]
    assert all(list(row["by_client"]) == ["0"] for row in rows if row["failures"])
    assert all(row["seconds"] < 90 for row in rows)
    assert went_on.summary["model_sha256"]
    assert {row["client"] for row in went_on.reconstructions if "psnr" in row["metrics"]} >= {0}
