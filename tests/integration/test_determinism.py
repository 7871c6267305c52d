import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message

from fedleak.engines.inprocess import InProcess, InProcessGrid
from fedleak.events import Event
from fedleak.experiment import run as api
from fedleak.experiment.result import Result
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import Scenario
from fedleak.wire.grid import OrderedGrid

Build, Start = Callable[..., Scenario], Callable[..., Result]
Facts = Callable[[Path], Any]
SCENARIOS: dict[str, dict[str, Any]] = {
    "fedsgd": {"model": {"name": "lenet", "channels": 4}, "data": {"image_size": 32}},
    "sampled": {"federation": {"clients": 5, "clients_per_round": 2, "rounds": 3}},
    "fedavg": {
        "federation": {"protocol": "fedavg"},
        "local": {"batch_size": 2, "epochs": 2},
        "model": {"name": "convnet", "width": 4, "norm": "batch"},
    },
    "defended": {"defenses": [{"name": "gaussian-noise", "std": 0.01}, {"name": "dropout"}]},
}
ATTACKS = [
    {"name": "grey"},
    {"name": "dlg", "iterations": 2, "restarts": 2, "clients": 1, "rounds": [1]},
    {"name": "inverting-gradients", "iterations": 2, "clients": 2},
]


def disturb(number: int, threads: int | None = None) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
    random.random(), np.random.rand(number), torch.rand(number)
    if threads is not None:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("case", SCENARIOS)
def test_the_same_scenario_gives_the_same_numbers_whatever_the_global_generators_do(
    build: Build, start: Start, facts: Facts, grey: str, case: str
) -> None:
    threads, number = torch.get_num_threads(), iter(range(1, 10_000))

    def meddle(event: Event) -> None:
        at = next(number)
        disturb(at, None if event.kind == "progress" else 1 + at % 2)

    # Second-order L-BFGS on a convolutional network takes long, and adds nothing here.
    chosen = [attack for attack in ATTACKS if case != "fedavg" or attack["name"] != "dlg"]
    scenario = build(**SCENARIOS[case], attacks=chosen)
    try:
        first = start(scenario)
        disturb(7, 2)
        again = start(scenario)
        disturbed = start(scenario, listener=meddle)
    finally:
        torch.set_num_threads(threads)
    assert next(number) > 10
    assert facts(first.path) == facts(again.path)
    assert facts(first.path) == facts(disturbed.path)


def clients_of(result: Result) -> list[list[int]]:
    return [row["clients"] for row in RunFolder(result.path).rows("rounds.jsonl")[1:]]


def test_clients_are_sampled_by_the_seed_alone(build: Build, start: Start) -> None:
    federation = {"clients": 8, "clients_per_round": 3, "rounds": 4}
    plain = clients_of(start(build(federation=federation)))
    assert all(len(set(sampled)) == 3 for sampled in plain)
    assert len({tuple(sampled) for sampled in plain}) > 1
    changed = {"model": {"name": "mlp", "hidden": [4]}, "local": {"batch_size": 2}, "server": {"curious": False}}
    assert clients_of(start(build(federation=federation, **changed))) == plain
    assert clients_of(start(build(federation=federation, seed=2))) != plain


class Shuffled(InProcessGrid):
    """Names its nodes and sends its replies in another order every time."""

    chance = random.Random(5)

    def get_node_ids(self) -> Iterable[int]:
        return self.chance.sample(list(super().get_node_ids()), len(self._contexts))

    def _replies(self, message_ids: Iterable[str]) -> Iterator[Message]:
        replies = list(super()._replies(message_ids))
        self.chance.shuffle(replies)
        return iter(replies)


@pytest.mark.parametrize("case", ["fedavg", "sampled"])
def test_the_order_of_nodes_and_replies_does_not_matter(
    build: Build, start: Start, facts: Facts, grey: str, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Engine(InProcess):
        def run(self, scenario: Scenario, serve: Any) -> None:
            clients = scenario.federation.clients
            grid = OrderedGrid(Shuffled(self._app, clients, scenario.to_json()), clients, 60.0)
            serve(grid, grid.directory)

    scenario = build(**SCENARIOS[case], attacks=[{"name": grey}])
    plain = start(scenario)
    monkeypatch.setattr(api, "engine", lambda name: Engine())
    assert facts(start(scenario).path) == facts(plain.path)


def test_the_seed_and_the_digest_tell_experiments_apart(build: Build) -> None:
    scenario = build()
    assert scenario.digest == build(name="other", federation={"engine": "ray", "timeout": 5.0}).digest
    assert scenario.digest != build(seed=2).digest
    assert scenario.digest != build(local={"learning_rate": 0.2}).digest
