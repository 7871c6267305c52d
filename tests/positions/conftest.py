"""A federation of one number a client, on a grid in this process; and what a door makes of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

from fedleak.engines.inprocess import InProcessGrid
from fedleak.modalities.image import InputSpec
from fedleak.observation import LocalTraining, Observation
from fedleak.runs.folder import RunFolder
from fedleak.wire.arrays import SentModel
from fedleak.wire.directory import Directory
from fedleak.wire.received import Received, Reply

SPEC = InputSpec((1, 2, 2), 3)


@pytest.fixture(autouse=True)
def _task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages ask which task they belong to."""
    for name in ("run_id", "node_id", "task_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1, raising=False)


@dataclass
class Clients:
    """What clients answer, by the kind of message; a missing answer is an error of that client. ``asked`` are all messages."""

    answers: dict[str, Callable[[int, Message], RecordDict]] = field(default_factory=dict)
    number: int = 3
    asked: list[tuple[int, str, RecordDict]] = field(default_factory=list)

    def __call__(self, message: Message, context: Context) -> Message:
        client, kind = int(context.node_config["partition-id"]), message.metadata.message_type
        self.asked.append((client, kind, message.content))
        if kind == "query.whoami" and kind not in self.answers:
            return Message(RecordDict({"who": MetricRecord({"partition-id": client})}), reply_to=message)
        return Message(self.answers[kind](client, message), reply_to=message)

    def grid(self) -> InProcessGrid:
        return InProcessGrid(self, self.number, "")  # type: ignore[arg-type]

    def directory(self, grid: InProcessGrid) -> Directory:
        return Directory(list(grid.get_node_ids()), self.number, grid.send_and_receive)


@pytest.fixture
def clients() -> type[Clients]:
    """Return clients that answer as a test says."""
    return Clients


@pytest.fixture
def update() -> Callable[..., RecordDict]:
    """Return the content of a train reply: arrays, and how many examples are behind them."""

    def make(arrays: dict[str, Any], examples: int = 2) -> RecordDict:
        record = ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})
        return RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": examples})})

    return make


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Return an empty run folder."""
    return RunFolder.create(tmp_path / "run", {})


class Net(nn.Module):
    """A linear layer, and a counter as BatchNorm has one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3, bias=False)
        self.register_buffer("count", torch.tensor(0))

    def forward(self, images: torch.Tensor) -> Any:
        return self.linear(images.flatten(1))


@pytest.fixture
def net() -> nn.Module:
    """Return a network with a buffer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


@pytest.fixture
def received(net: nn.Module) -> Callable[..., Received]:
    """Return what came back of clients that moved all weights by their partition id plus one; of ``failed`` nothing did."""

    def make(clients: Iterable[int] = range(3), server_round: int = 1, asked: int = 3, cohort: tuple[int, ...] = ()) -> Received:
        sent = SentModel(ArrayRecord(net.state_dict()))
        good = {}
        for client in clients:
            arrays = {name: np.asarray(values + (client + 1), values.dtype) for name, values in sent.values.items()}
            for values in arrays.values():
                values.flags.writeable = False
            good[client] = Reply(Message.__new__(Message), arrays, 2 + client, cohort)
        return Received(server_round, dict.fromkeys(range(asked), sent), good)

    return make


@pytest.fixture
def observation(net: nn.Module) -> Observation:
    """Return an observation of two images."""
    parameters = dict(net.named_parameters())
    return Observation(
        kind="gradient",
        parameters={name: value.detach() for name, value in parameters.items()},
        update={name: torch.ones_like(value) for name, value in parameters.items()},
        input=SPEC,
        buffers=dict(net.named_buffers()),
        local=LocalTraining(2, 2),
    )
