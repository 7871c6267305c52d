"""How what is rebuilt behind secure aggregation is graded: over the whole cohort, and each image by its owner."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message

from fedleak.attacks.base import Attack
from fedleak.client.app import app
from fedleak.data.batches import client_data, private_batch
from fedleak.engines.inprocess import InProcess
from fedleak.experiment.attack_again import attack_run
from fedleak.experiment.result import Result
from fedleak.modalities.image.metrics import mse
from fedleak.scenario.schema import AttackSpec, Scenario

Build, Start = Callable[..., Scenario], Callable[..., Result]
SECURE, VIEW = {"name": "secure-aggregation"}, {"name": "secagg-view"}


def truth(scenario: Scenario, client: int, server_round: int) -> torch.Tensor:
    data = client_data(scenario)
    shard = data.shard(client)
    return data.images(shard[private_batch(scenario, len(shard), client, server_round)])


def test_images_are_assigned_over_the_whole_cohort_and_rows_name_their_owner(
    build: Build, start: Start, watcher: type[Attack]
) -> None:
    tables = {"federation": {"clients": 3, "rounds": 1}, "local": {"batch_size": 2}, "attacks": [{"name": "watcher"}]}
    for mode in ("reveal", "score"):
        scenario = build(**tables, defenses=[SECURE], evaluation={"truth": mode})
        images = torch.cat([truth(scenario, client, 1) for client in range(3)])
        order = [4, 1, 5, 0, 3, 2]
        watcher.answers = {1: images[order] * 0.9}  # type: ignore[attr-defined]
        result = start(scenario)
        rows = result.reconstructions
        assert [(row["client"], row["example"]) for row in rows] == [(client, image) for client in range(3) for image in range(2)]
        for number, row in enumerate(rows):
            assert row["metrics"]["mse"] == pytest.approx(
                float(mse(images[number : number + 1] * 0.9, images[number : number + 1])), rel=1e-4
            )
            assert row["cohort"] == [0, 1, 2]
            assert row["identified"]
            assert (row["exhibit"] is None) == (mode == "score")
            if mode == "reveal":
                assert row["exhibit"] == f"images/r001-c{row['client']:03d}-watcher-{row['example']}.png"
                assert row["truth"] == f"images/r001-c{row['client']:03d}-truth-{row['example']}.png"
        assert len(list((result.path / "images").iterdir())) == (12 if mode == "reveal" else 0)
        [entry] = result.summary["leakage"]
        assert (entry["examples"], entry["failures"]) == (6, 0)
        assert entry["cpu_seconds"] == pytest.approx(rows[0]["cpu_seconds"])  # one attack, not one a client


def test_too_few_and_broken_images_leave_the_worst_without_one(build: Build, start: Start, watcher: type[Attack]) -> None:
    scenario = build(federation={"rounds": 1}, defenses=[VIEW], attacks=[{"name": "watcher"}])
    images = torch.cat([truth(scenario, client, 1) for client in range(3)])
    watcher.answers = {1: torch.stack([images[2], torch.full_like(images[0], torch.nan)])}  # type: ignore[attr-defined]
    rows = start(scenario).reconstructions
    assert [row["metrics"].get("mse") for row in rows] == [None, None, pytest.approx(0)]
    assert all("fewer-images" in row["flags"] for row in rows[:2])


def test_a_client_that_does_not_grade_costs_its_own_rows_only(
    build: Build, start: Start, grey: str, use: Callable[[InProcess], None]
) -> None:
    for question in ("query.distances", "query.grade"):

        def mute(message: Message, context: Context, kind: str = question) -> Message:
            if message.metadata.message_type == kind and context.node_config["partition-id"] == 1:
                raise ConnectionError("gone")
            return app(message, context)

        use(InProcess(mute))  # type: ignore[arg-type]
        rows = start(build(federation={"rounds": 1}, defenses=[SECURE], attacks=[{"name": grey}])).reconstructions
        assert [row["client"] for row in rows] == [0, 1, 2]
        assert [row["error"] is None for row in rows] == [True, False, True]
        assert "did not grade" in rows[1]["error"]


def test_a_finished_run_can_be_attacked_again(build: Build, start: Start, grey: str, facts: Callable[[Path], Any]) -> None:
    scenario = build(local={"batch_size": 2}, defenses=[SECURE], attacks=[{"name": grey}])
    result = start(scenario)
    before = result.reconstructions
    again = attack_run(result.path, [grey], device="cpu")
    clock = ("seconds", "cpu_seconds")
    assert [{k: v for k, v in row.items() if k not in clock} for row in again.reconstructions] == [
        {k: v for k, v in row.items() if k not in clock} for row in before
    ]
    other = attack_run(result.path, [AttackSpec(name="inverting-gradients", iterations=1)], device="cpu")
    assert sum(row["attack"] == "inverting-gradients" for row in other.reconstructions) == 12
