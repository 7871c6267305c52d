"""Epsilon is written with each round, survives an interrupt, and nothing of the images leaves a private client beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from opacus.accountants import RDPAccountant

from fedleak.client.app import on_train
from fedleak.data.batches import client_data
from fedleak.defenses.chain import defended_model
from fedleak.errors import ScenarioError
from fedleak.experiment import run as api
from fedleak.experiment.result import Result
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import Scenario

Build, Start = Callable[..., Scenario], Callable[..., Result]
PRIVATE = {"max_norm": 1.0, "noise_multiplier": 2.0}
FEDERATION = {"clients": 3, "clients_per_round": 2, "rounds": 4}


def by_opacus(uses: int) -> float:
    accountant = RDPAccountant()
    for _ in range(uses):
        accountant.step(noise_multiplier=2.0, sample_rate=1.0)
    return float(accountant.get_epsilon(1e-4))


def private(build: Build, name: str, **tables: Any) -> Scenario:
    return build(
        **{
            "defenses": [{"name": name, **PRIVATE}],
            "federation": FEDERATION,
            "evaluation": {"delta": 1e-4},
            "server": {"curious": False},
            **tables,
        }
    )


def test_rounds_and_summary_state_what_each_client_has_spent(build: Build, start: Start) -> None:
    result = start(private(build, "client-dp"))
    rows = RunFolder.open(result.path).rows("rounds.jsonl")
    took_part = dict.fromkeys(range(3), 0)
    assert "epsilon" not in rows[0]
    for row in rows[1:]:
        for client in row["clients"]:
            took_part[client] += 1
        assert row["epsilon"] == {str(client): by_opacus(took_part[client]) for client in row["clients"]}
        assert (row["delta"], row["privacy_unit"]) == (1e-4, "client")
    assert len(set(took_part.values())) > 1, "all clients took part equally often, so that the test shows nothing"
    expected = {str(client): by_opacus(rounds) for client, rounds in took_part.items() if rounds}
    assert result.summary["privacy"]["by_client"] == expected
    assert result.summary["privacy"]["epsilon"] == by_opacus(max(took_part.values()))


@pytest.mark.parametrize("name", ["client-dp", "dp-sgd"])
def test_an_interrupted_run_goes_on_to_the_same_epsilon_and_model(
    build: Build, start: Start, name: str, tmp_path: Path, facts: Callable[[Path], Any]
) -> None:
    scenario = private(build, name, local={"batch_size": 4})
    straight = start(scenario)

    def stop(event: Any) -> None:
        if event.kind == "round-done" and event.facts["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.run(scenario, out=tmp_path / "cut", device="cpu", listener=stop)
    api.run(scenario, resume=tmp_path / "cut", device="cpu")
    assert facts(tmp_path / "cut")[:2] == facts(straight.path)[:2]


@pytest.mark.parametrize("name", ["dp-sgd", "client-dp", None])
def test_a_private_client_does_not_send_its_loss(build: Build, name: str | None) -> None:
    scenario = build(defenses=[{"name": name, **PRIVATE}] if name else [])
    state = defended_model(scenario, client_data(scenario).input).state_dict()
    content = RecordDict({"arrays": ArrayRecord(state), "config": ConfigRecord({"server-round": 1})})
    context = Context(1, 1, {"partition-id": 0}, RecordDict(), {"scenario": scenario.to_json()})
    reply = on_train(Message(content, dst_node_id=1, message_type="train"), context)
    assert ("train_loss" in reply.content.metric_records["metrics"]) == (name is None)


def test_a_defense_without_a_guarantee_leaves_its_reason(build: Build, start: Start) -> None:
    scenario = private(build, "dp-sgd", defenses=[{"name": "dp-sgd", "max_norm": 1.0, "noise_multiplier": 0}])
    result = start(scenario)
    assert result.summary["privacy"]["epsilon"] is None
    assert "clipping without noise" in result.summary["privacy"]["no_epsilon"]


@pytest.mark.parametrize("delta", [0, 1, -1e-5])
def test_delta_out_of_range_is_refused(build: Build, delta: float) -> None:
    with pytest.raises(ScenarioError, match=r"evaluation\.delta"):
        build(evaluation={"delta": delta})
