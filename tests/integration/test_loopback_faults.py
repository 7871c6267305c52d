"""A real deployment on this machine loses a client and its server in mid-round, and goes on."""

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedleak.data.parts import write_shards
from fedleak.deploy.certificates import make_certificates
from fedleak.deploy.services import Layout, Services
from fedleak.errors import FedleakError
from fedleak.experiment import run as api
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import Scenario, parse_scenario
from fedleak.scenario.secret import place

pytestmark = pytest.mark.slow


def scenario(services: Services | None = None) -> Scenario:
    federation: dict[str, Any] = {"clients": 2, "rounds": 3, "timeout": 90.0}
    if services is not None:
        federation |= {"engine": "deployment", "superlink": json.loads(services.superlink.model_dump_json())}
    attack = {"name": "closed-form", "clients": 1}
    return parse_scenario({"name": "faults", "federation": federation, "attacks": [attack]})


def wait(services: Services, done: Callable[[], bool], seconds: float = 400.0) -> None:
    """Wait, starting again what ends, as `fedleak deploy up` does."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.5)
        services.revive()


class Submitted(threading.Thread):
    """Submit and follow a run beside the test."""

    def __init__(self, **options: Any) -> None:
        super().__init__(daemon=True)
        self.options, self.result, self.error = options, None, None
        self.start()

    def run(self) -> None:
        try:
            self.result = api.run(**self.options, device="cpu")  # type: ignore[func-returns-value, assignment]
        except FedleakError as error:
            self.error = error  # type: ignore[assignment]

    def end(self, services: Services) -> Any:
        wait(services, lambda: not self.is_alive())
        return self.result


def test_a_client_and_then_the_server_are_killed_in_mid_round(tmp_path: Path) -> None:
    make_certificates(tmp_path / "keys", 2)
    plain = scenario()
    write_shards(plain.data, 2, plain.seed, tmp_path / "shards", plain.secret)
    with Services(Layout(tmp_path / "keys", tmp_path / "runs", tmp_path / "shards")) as services:
        asked, out = scenario(services), tmp_path / "run"

        def trained(client: int) -> int:
            text = services.services[f"client-{client}"].log.read_text(errors="replace")
            return text.count("Receiving: train message")

        first = Submitted(scenario=asked, out=out)
        wait(services, lambda: trained(1) == 1)
        services.services["client-1"].signal(signal.SIGKILL)
        folder = RunFolder(out)
        wait(services, lambda: len(folder.rows("rounds.jsonl")) == 2)
        [failure] = folder.rows("rounds.jsonl")[1]["failures"]
        assert failure["client"] == 1

        wait(services, lambda: trained(0) == 2)
        services.services["server"].signal(signal.SIGKILL)
        first.end(services)
        assert "without a result" in str(first.error)
        assert str(out) in str(first.error)
        assert folder.load_checkpoint()[0] == 1

        resumed = Submitted(scenario=asked, resume=out).end(services)
        assert resumed is not None
        assert resumed.here

    rows = folder.rows("rounds.jsonl")
    assert [row["round"] for row in rows] == [0, 1, 2, 3]
    assert [len(row["failures"]) for row in rows[1:]] == [1, 0, 0]
    assert (resumed.summary["rounds"], resumed.summary["client_errors"]) == (3, 1)
    results = [(row["round"], row["client"]) for row in resumed.reconstructions if not row["error"]]
    assert results == [(1, 0), (2, 0), (3, 0)]
    assert sorted(path.name for path in folder.captures()) == [
        f"r00{number}-c00{client}.safetensors" for number, client in ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1))
    ]
    page = resumed.report.read_text()
    # Whether the SuperLink has noticed by then that the node is away decides if it says so.
    assert failure["reason"].startswith("no reply")
    assert "no reply" in page


def test_a_stopped_run_ends_where_it_runs(tmp_path: Path) -> None:
    """Ctrl-C at the one who submitted: the server is told, keeps what it has, and takes the next run."""
    place(tmp_path / "none", str(scenario().secret), named=True)
    with Services(Layout(tmp_path / "none", tmp_path / "runs", insecure=True, clients=2)) as services:
        asked = scenario(services)

        def interrupt(event: Any) -> None:
            if event.kind == "round-done" and event.facts["round"] == 1:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            api.run(asked, out=tmp_path / "run", device="cpu", listener=interrupt)
        wait(services, lambda: (tmp_path / "run" / "summary.json").exists(), 120)
        assert RunFolder(tmp_path / "run").load_checkpoint()[0] >= 1
        assert not [s.name for s in services.services.values() if s.ended]
