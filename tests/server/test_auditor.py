"""When a model is tested, who is told, and what a run that goes on has spent already."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg

from fedleak.events import Event
from fedleak.modalities.image import InputSpec
from fedleak.runs.folder import Row, RunFolder
from fedleak.scenario.schema import parse_scenario
from fedleak.server.auditor import Auditor

SPEC = InputSpec((1, 2, 2), 2, (0.0,), (1.0,))


class Images:
    """Ten images, white for class 1 and black for class 0, but for the last."""

    labels = np.array([0, 1] * 4 + [1, 1])

    def __len__(self) -> int:
        return 10

    def load(self, indices: Any) -> torch.Tensor:
        return torch.stack([torch.full(SPEC.shape, float(index % 2)) for index in indices])


IMAGES = Images()


class Lines:
    """Takes what a ledger writes."""

    def __init__(self) -> None:
        self.closed: list[tuple[int, Row, Row]] = []

    def close(self, server_round: int, arrays: Any, measured: Row, more: Row, plain: Row, state: Row) -> None:
        self.closed.append((server_round, measured, more))


@pytest.fixture
def audit(tmp_path: Path) -> Any:
    def make(done: int | None = None, test: Any = IMAGES, **evaluation: Any) -> tuple[Auditor, Lines, list[Event]]:
        lines, told = Lines(), list[Event]()
        table = {"name": "x", "federation": {"rounds": 5, "clients": 2}, "evaluation": evaluation}
        data: Any = SimpleNamespace(source=SimpleNamespace(test=test), shards=[range(3), range(3)], input=SPEC)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
        folder = RunFolder.create(tmp_path / "run", {})
        door: Any = SimpleNamespace(asked=[0, 1])
        return (
            Auditor(
                parse_scenario(table),
                folder,
                lines,  # type: ignore[arg-type]
                door,
                FedAvg(),
                net,
                data,
                done,
                costs=lambda: {"cost": 3},
                listener=told.append,
            ),
            lines,
            told,
        )

    return make


def bright(bias: float = 0.0) -> ArrayRecord:
    """Return the model that calls bright images class 1, the more so the larger ``bias``."""
    weight = np.array([[0, 0, 0, 0], [1, 1, 1, 1]], np.float32)
    return ArrayRecord({"1.weight": Array(weight), "1.bias": Array(np.array([2 - bias, 0], np.float32))})


def test_accuracy_and_loss_are_those_of_the_test_split(audit: Any) -> None:
    auditor, _, _ = audit()
    found = auditor.test(bright())
    assert found["accuracy"] == 0.9
    logits = torch.tensor([[2.0, 0.0], [2.0, 4.0]])[torch.arange(10) % 2]
    assert found["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, torch.as_tensor(Images.labels))))
    assert auditor.test(bright(bias=9.0))["accuracy"] == 0.6  # all are called 1


def test_without_a_test_split_nothing_is_known(audit: Any) -> None:
    auditor, _, _ = audit(test=None)
    assert auditor.test(bright()) == {"accuracy": None, "loss": None}


def test_each_round_is_closed_and_the_next_one_told(audit: Any) -> None:
    auditor, lines, told = audit(every=3)
    for server_round in range(6):
        auditor.close(server_round, bright())
    assert [closed[0] for closed in lines.closed] == [0, 1, 2, 3, 4, 5]
    assert [closed[1]["accuracy"] for closed in lines.closed] == [0.9, None, None, 0.9, None, 0.9]
    assert [closed[2].get("cost") for closed in lines.closed] == [None, 3, 3, 3, 3, 3]
    assert [(event.kind, event.facts["round"]) for event in told] == [("round", number) for number in range(1, 6)]


def test_a_run_that_goes_on_does_not_close_its_last_round_again(audit: Any) -> None:
    auditor, lines, told = audit(done=3)
    for flower_round in range(3):
        auditor.close(flower_round, bright())
    assert [closed[0] for closed in lines.closed] == [4, 5]
    assert [event.facts["round"] for event in told] == [4, 5]


def test_of_a_round_whose_line_is_lost_every_client_has_paid(audit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paid: list[tuple[int, list[int]]] = []
    monkeypatch.setattr(
        "fedleak.evaluation.privacy.Accountant.took_part",
        lambda _, server_round, clients: paid.append((server_round, [*clients])),
    )
    row = {"accuracy": None, "loss": None, "clients": [1], "failures": []}
    make = RunFolder.create

    def with_lines(path: Path, manifest: Row) -> RunFolder:
        folder = make(path, manifest)
        folder.append("rounds.jsonl", [row | {"round": 1}, row | {"round": 3}])
        return folder

    monkeypatch.setattr(RunFolder, "create", with_lines)
    audit(done=4)
    assert sorted(paid) == [(1, [1]), (2, [0, 1]), (3, [1]), (4, [0, 1])]
