"""One way in which the lines of rounds.jsonl are written, with a folder from the start and with one that comes later."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from fedleak.events import Event
from fedleak.runs.folder import RunFolder
from fedleak.server.ledger import Ledger
from fedleak.wire.received import Failure

ARRAYS = ArrayRecord({"w": Array(np.arange(3.0))})


@pytest.fixture
def door() -> Any:
    failures = (Failure(1, "no reply"),)
    return SimpleNamespace(asked=[0, 1], failures=failures, bytes_received=7, position=SimpleNamespace(seconds=0.25))


def test_a_line_a_checkpoint_and_then_it_is_told(tmp_path: Path, door: Any) -> None:
    folder, told = RunFolder.create(tmp_path / "run", {}), list[Event]()
    ledger = Ledger(door, folder, told.append)
    ledger.close(0, ARRAYS, {"accuracy": 0.5, "loss": 1.0})
    ledger.close(
        1, ARRAYS, {"accuracy": None, "loss": None}, {"bytes_received": 9, "more": 1}, {"kept": 2}, {"state.m": np.ones(2)}
    )
    first, second = folder.rows("rounds.jsonl")
    assert set(first) == {"round", "accuracy", "loss", "memory"}
    assert {key: second[key] for key in ("round", "clients", "failures", "attack_seconds", "bytes_received", "more")} == {
        "round": 1,
        "clients": [0, 1],
        "failures": [{"client": 1, "reason": "no reply"}],
        "attack_seconds": 0.25,
        "bytes_received": 9,
        "more": 1,
    }
    server_round, arrays, plain = folder.load_checkpoint()
    assert (server_round, sorted(arrays), plain) == (1, ["model/w", "state.m"], {"kept": 2})
    assert [(event.kind, event.facts) for event in told] == [("round-done", first), ("round-done", second)]


def test_without_a_folder_lines_wait(tmp_path: Path, door: Any) -> None:
    ledger = Ledger(door)
    ledger.close(0, ARRAYS, {"accuracy": 0.5, "loss": 1.0})
    folder = RunFolder.create(tmp_path / "run", {})
    ledger.open(folder)
    ledger.close(1, ARRAYS, {"accuracy": 0.6, "loss": 0.9})
    assert [(row["round"], row["accuracy"]) for row in folder.rows("rounds.jsonl")] == [(0, 0.5), (1, 0.6)]
    ledger.open(folder)
    assert len(folder.rows("rounds.jsonl")) == 2
