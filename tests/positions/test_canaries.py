"""A watch before another position: what it measures, and what it lets pass."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message

from fedleak.evaluation.canaries import canary_seed, control_seed, direction
from fedleak.positions.base import Honest
from fedleak.positions.canaries import CanaryWatch
from fedleak.runs.folder import CANARIES, RunFolder
from fedleak.scenario.schema import Scenario, parse_scenario
from fedleak.wire.received import Failure, Received, Reply

SHAPES = {"linear.weight": (3, 4)}
Make = Callable[..., Received]


def scenario(protocol: str) -> Scenario:
    federation = {"clients": 6, "protocol": protocol}
    return parse_scenario({"name": "t", "federation": federation, "evaluation": {"canaries": {"count": 4, "controls": 20}}})


class Behind(Honest):
    def __init__(self) -> None:
        self.seen: list[Received] = []

    def see(self, received: Received, grid: Any) -> None:
        self.seen.append(received)
        self.seconds = 1.5


def model(values: Any) -> ArrayRecord:
    return ArrayRecord({"linear.weight": Array(np.asarray(values, np.float32)), "count": Array(np.asarray(0))})


def flat(seed: Any) -> np.ndarray:
    return direction(seed, SHAPES)["linear.weight"].numpy().ravel().astype(np.float64)


@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_products_are_of_what_came_back_and_of_how_the_model_moved(folder: RunFolder, received: Make, protocol: str) -> None:
    asked, behind = scenario(protocol), Behind()
    watch = CanaryWatch(asked, folder, SHAPES, behind)
    watch.moved(0, model(np.zeros((3, 4))))
    round_one = replace(received(range(5), asked=6), failures=(Failure(5, "lost"), Failure(1, "odd")))
    watch.see(round_one, None)  # type: ignore[arg-type]
    moved = np.linspace(-1, 1, 12).reshape(3, 4)
    watch.moved(1, model(moved))
    [row] = folder.rows(CANARIES)
    update = {c: round_one.good[c].arrays["linear.weight"].astype(np.float64).ravel() for c in range(2, 5)}
    if protocol == "fedavg":
        update = {c: value - round_one.sent[c].values["linear.weight"].astype(np.float64).ravel() for c, value in update.items()}
    assert set(row["updates"]) == {"2", "3", "4"}
    for client, products in row["updates"].items():
        assert products == pytest.approx({str(c): update[int(client)] @ flat(canary_seed(1, c)) for c in range(2, 6)})
    sign = -1 if protocol == "fedsgd" else 1
    change = sign * np.float32(moved).astype(np.float64).ravel()
    assert row["model"]["canaries"] == pytest.approx([change @ flat(canary_seed(1, c)) for c in range(2, 6)])
    assert row["model"]["controls"] == pytest.approx([change @ flat(control_seed(1, n)) for n in range(20)])


def test_the_position_behind_is_shown_everybody_else(folder: RunFolder, received: Make) -> None:
    behind = Behind()
    watch = CanaryWatch(scenario("fedsgd"), folder, SHAPES, behind)
    watch.see(replace(received(range(5), asked=6), failures=(Failure(5, "lost"),)), None)  # type: ignore[arg-type]
    assert list(behind.seen[0].good) == [0, 1]
    assert behind.seen[0].failures == ()
    assert watch.seconds == 1.5
    sent: Any = object()
    assert watch.model_for(1, 3, sent) is sent


def test_a_sum_passes_and_a_resumed_run_measures_from_its_checkpoint_on(folder: RunFolder, received: Make) -> None:
    behind = Behind()
    watch = CanaryWatch(scenario("fedsgd"), folder, SHAPES, behind)
    whole = received([0], cohort=(0, 1, 2, 3, 4, 5))
    watch.see(replace(whole, good={2: Reply(Message.__new__(Message), whole.good[0].arrays, 6, (2, 3))}), None)  # type: ignore[arg-type]
    assert list(behind.seen[0].good) == [2]
    watch.moved(7, model(np.ones((3, 4))))  # what the checkpoint holds
    watch.moved(8, model(np.full((3, 4), np.inf)))
    watch.moved(9, model(torch.ones(3, 4).numpy()))
    rows = folder.rows(CANARIES)
    assert [row["round"] for row in rows] == [8, 9]
    assert [row["updates"] for row in rows] == [{}, {}]
    assert [row["model"] for row in rows] == [None, None]
