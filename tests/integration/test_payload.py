"""A part of a network travels: trained, defended, summed, recorded and attacked as such, on the command line and in apps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from torch import nn
from torch.nn import functional

import fedleak
from fedleak.engines.inprocess import InProcessGrid
from fedleak.errors import ScenarioError
from fedleak.events import Event
from fedleak.experiment.check import check
from fedleak.modalities.image import InputSpec
from fedleak.observation import Observation
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import parse_scenario

OWN = '''
import torch
from torch import nn


class Adapted(nn.Module):
    """A linear layer that stays, and an adapter of rank 2 that is trained."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer.requires_grad_(False)
        self.lora_A, self.lora_B = nn.ModuleDict(), nn.ModuleDict()
        self.lora_A["default"] = nn.Linear(layer.in_features, 2, bias=False)
        self.lora_B["default"] = nn.Linear(2, layer.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class Stateful(nn.Linear):
    def get_extra_state(self):
        return {"scale": 3}

    def set_extra_state(self, state):
        pass


class Net(nn.Module):
    def __init__(self, num_classes=10, lora=False, tied=False, extra=False, freeze=()):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5, 4, padding=2)
        self.norm = nn.BatchNorm2d(8)
        self.first = (Stateful if extra else nn.Linear)(512, 24)
        self.second = nn.Linear(24, 24)
        self.third = nn.Linear(24, 24)
        self.head = nn.Linear(24, num_classes)
        if tied:
            self.third.weight = self.second.weight
        if lora:
            self.requires_grad_(False)
            self.second = Adapted(self.second)
        for name in freeze:
            self.get_submodule(name).requires_grad_(False)

    def forward(self, x):
        x = self.norm(self.conv(x)).sigmoid().flatten(1)
        return self.head(self.third(self.second(self.first(x).sigmoid()).sigmoid()).sigmoid())
'''
HEAD = ["head.weight", "head.bias"]


@pytest.fixture(scope="module", autouse=True)
def _own(tmp_path_factory: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("own")
        (folder / "own_payload.py").write_text(OWN)
        patch.syspath_prepend(folder)
        yield


def asked(payload: Any = "all", model: Any = (), protocol: str = "fedsgd", **keys: Any) -> Any:
    table: dict[str, Any] = {
        "name": "part",
        "model": {"name": "own_payload:Net", **dict(model)},
        "federation": {"clients": 3, "rounds": 2, "protocol": protocol, "payload": payload},
        "local": {"batch_size": 1, "mode": "eval"},
        "server": {"isolation": "none"},
        "attacks": [{"name": "dlg", "labels": "idlg", "iterations": 2}],
    }
    return parse_scenario(table | keys)


def ran(scenario: Any, out: Path) -> tuple[RunFolder, list[Any], list[Observation]]:
    folder = RunFolder.open(fedleak.run(scenario, out=out).path)
    return folder, list(folder.rows("reconstructions.jsonl")), [Observation.load(path) for path in folder.captures()]


@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_a_head_alone_travels_and_is_trained(tmp_path: Path, protocol: str) -> None:
    steps = {"steps": 1} if protocol == "fedavg" else {}
    scenario = asked(["head.*"], protocol=protocol, local={"batch_size": 1, "mode": "eval", **steps})
    folder, rows, seen = ran(scenario, tmp_path / "run")
    assert [row["error"] for row in rows] == [None] * 6
    assert all(row["label_correct"] for row in rows)
    assert folder.manifest["model_names"] == HEAD
    assert (list(seen[0].update), list(seen[0].buffers)) == (HEAD, [])
    assert "conv.weight" in seen[0].kept
    first, last = seen[0].parameters, seen[-1].parameters
    assert all(bool((first[name] != last[name]).any()) for name in HEAD)
    assert not any(row.get("failures") for row in folder.rows("rounds.jsonl"))


def test_what_is_trained_is_the_same_with_an_attacker_and_after_an_interrupt(tmp_path: Path) -> None:
    digests = []
    for name, changes in {"curious": {}, "honest": {"server": {"curious": False}}}.items():
        folder, _, _ = ran(asked(["head.*"], **changes), tmp_path / name)
        digests.append(json.loads((folder.path / "summary.json").read_text())["model_sha256"])

    def stop(event: Event) -> None:
        if event.kind == "round-done" and event.facts["round"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fedleak.run(asked(["head.*"]), out=tmp_path / "broken", listener=stop)
    again = fedleak.run(None, resume=tmp_path / "broken", allow_code=True)
    assert digests[0] == digests[1] == again.summary["model_sha256"] != ""


@pytest.mark.parametrize(
    ("model", "payload", "trained", "carried"),
    [
        ({"lora": True}, "trainable", ["second.lora_A.default.weight", "second.lora_B.default.weight"], []),
        ({"freeze": ["conv"]}, "all", None, ["conv.weight", "conv.bias", "norm.running_mean"]),
        ({"tied": True}, "all", None, ["norm.running_mean"]),
        ({"extra": True}, "all", None, ["norm.running_mean"]),
    ],
)
def test_adapters_frozen_tied_and_extra_state(tmp_path: Path, model: Any, payload: Any, trained: Any, carried: Any) -> None:
    scenario = asked(payload, model, attacks=[{"name": "dlg", "iterations": 2}], server={"isolation": "process"})
    _, rows, seen = ran(scenario, tmp_path / "run")
    assert [row["error"] for row in rows] == [None] * 6
    assert trained is None or list(seen[0].update) == trained
    assert set(carried) <= set(seen[0].buffers)
    assert "third.weight" not in seen[0].update or not model.get("tied")
    assert not any("_extra_state" in name for name in seen[0].buffers)


@pytest.mark.parametrize(
    "defense", [{"name": "dp-sgd", "max_norm": 1.0, "noise_multiplier": 0.1}, {"name": "gradient-pruning", "ratio": 0.5}]
)
def test_defenses_and_sums_carry_a_part(tmp_path: Path, defense: dict[str, Any]) -> None:
    for number, defenses in enumerate(([defense], [defense, {"name": "secure-aggregation"}])):
        scenario = asked(["head.*"], defenses=defenses, protocol="fedavg", attacks=[{"name": "dlg", "iterations": 1}])
        folder, rows, _ = ran(scenario, tmp_path / str(number))
        assert rows
        assert not any(row.get("failures") for row in folder.rows("rounds.jsonl"))


def test_what_cannot_read_a_part_says_so_before_anything_starts() -> None:
    with pytest.raises(
        ScenarioError, match=r"attacks\[0\]: 'closed-form' reads the update of every parameter, and that of 'conv\.weight'"
    ):
        check(asked(["head.*"], attacks=[{"name": "closed-form"}]))
    with pytest.raises(
        ScenarioError, match=r"attacks\[0\]: 'dlg' runs the whole network, of which 'conv\.weight', .* is not known"
    ):
        check(asked(["head.*"], threat={"frozen_known": False}))
    with pytest.raises(ScenarioError, match=r"federation\.payload: 'heads\.\*' matches no tensor"):
        check(asked(["heads.*"]))


SPEC = InputSpec((3, 32, 32), 10)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        from own_payload import Net  # type: ignore[import-not-found]

        model: nn.Module = Net().eval()
        return model


def app(form: str) -> tuple[ClientApp, ArrayRecord]:
    """Return an app that trains a head and sends it as its own state dict, or as a list of arrays, and what it starts from."""
    client = ClientApp()

    def packed(model: Any) -> ArrayRecord:
        head = model.head.state_dict()
        return ArrayRecord(head) if form == "names" else ArrayRecord([value.numpy() for value in head.values()])

    @client.train()
    def train(msg: Message, context: Context) -> Message:
        model: Any = network()
        arrays: Any = msg.content["arrays"]
        values = [array.numpy() for array in arrays.values()]
        model.head.load_state_dict({"weight": torch.tensor(values[0]), "bias": torch.tensor(values[1])})
        optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
        images, labels = batch(context, 1)
        functional.cross_entropy(model(SPEC.normalize(images)), labels).backward()
        optimizer.step()
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": packed(model), "metrics": metrics}), reply_to=msg)

    return client, packed(network())


def batch(context: Context, server_round: int) -> tuple[torch.Tensor, torch.Tensor]:
    client = int(context.node_config["partition-id"])
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(client)), torch.tensor([client + 3])


@pytest.mark.parametrize(("form", "payload"), [("names", None), ("list", ["head.*"])])
def test_an_app_that_sends_its_head_is_attacked(tmp_path: Path, form: str, payload: Any) -> None:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    client, initial = app(form)
    settings: dict[str, Any] = {"batch_size": 1, "learning_rate": 0.1, "payload": payload, "out": tmp_path / "run"}
    attacks = [{"name": "dlg", "labels": "idlg", "iterations": 2}]
    strategy = fedleak.curious(FedAvg(fraction_evaluate=0.0), network, SPEC, attacks=attacks, **settings)
    strategy.start(grid=InProcessGrid(fedleak.answer(client, batch), 2, ""), initial_arrays=initial, num_rounds=1)
    rows = RunFolder.open(tmp_path / "run").rows("reconstructions.jsonl")
    assert [(row["client"], row["error"], row["label"]) for row in rows] == [(0, None, 3), (1, None, 4)]
    assert list(Observation.load(next(RunFolder(tmp_path / "run").captures())).update) == HEAD


def test_an_app_whose_arrays_are_none_of_the_networks_is_told_before_it_trains(tmp_path: Path) -> None:
    strategy = fedleak.curious(FedAvg(), network, SPEC, batch_size=1, learning_rate=0.1, out=tmp_path / "run")
    with pytest.raises(ScenarioError, match=r"what the app sends, 'w' \(3,\), is no part of the network"):
        strategy.start(grid=InProcessGrid(ClientApp(), 2, ""), initial_arrays=ArrayRecord({"w": torch.zeros(3)}), num_rounds=1)
