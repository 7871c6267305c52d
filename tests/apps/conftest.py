"""A tiny app of one's own: a linear network on 8-pixel images, one step of SGD a round, two clients, Flower's FedAvg."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Result, Strategy
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor, nn

import fedleak
from fedleak.engines.inprocess import InProcessGrid
from fedleak.modalities.image import InputSpec
from fedleak.models.digest import model_digest
from fedleak.runs.folder import RunFolder

SPEC = InputSpec((3, 8, 8), 4)
RATE = 0.01


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))


def digest(result: Result) -> str:
    return model_digest({name: array.numpy() for name, array in result.arrays.items()})


@dataclass
class App:
    """An app, and how often it is told to be unlike others; ``run`` starts it, and gives what its own program is given."""

    network: Callable[[], nn.Module] = net
    spec: InputSpec = SPEC
    batch_size: int = 1
    images: int = 1
    mods: list[Any] = field(default_factory=list)
    metrics: Callable[[int], dict[str, Any]] = lambda images: {"num-examples": images}
    loss: Callable[[Any, Tensor, Tensor], Tensor] = lambda outputs, _, labels: nn.functional.cross_entropy(outputs, labels)
    optimiser: Callable[[nn.Module, float], torch.optim.Optimizer] = lambda model, rate: torch.optim.SGD(model.parameters(), rate)
    reply: Callable[[nn.Module], Any] = lambda model: model.state_dict()
    load: Callable[[nn.Module, Any], Any] = lambda model, state: model.load_state_dict(state)
    node_config: Callable[[int], dict[str, Any]] = lambda client: {"partition-id": client, "num-partitions": 2}
    calls: list[str] = field(default_factory=list)

    def batch(self, context: Context, server_round: int) -> tuple[Tensor, Tensor]:
        number = int(context.node_config.get("partition-id", context.node_id))
        draw = torch.Generator().manual_seed(number)
        images = torch.rand(self.images, *self.spec.shape, generator=draw)
        return images, torch.arange(self.images) % self.spec.num_classes

    def client(self) -> ClientApp:
        app = ClientApp(mods=self.mods)

        @app.train()
        def train(msg: Message, context: Context) -> Message:
            self.calls.append("train")
            model = self.network().train()
            self.load(model, msg.content["arrays"].to_torch_state_dict())
            images, labels = self.batch(context, 1)
            rate = float(msg.content["config"]["lr"])
            optimiser = self.optimiser(model, rate)
            for rows in torch.arange(len(images)).split(self.batch_size):
                optimiser.zero_grad()
                inputs = self.spec.normalize(images[rows])
                self.loss(model(inputs), inputs, labels[rows]).backward()
                optimiser.step()
            content = {"arrays": ArrayRecord(self.reply(model)), "metrics": MetricRecord(self.metrics(len(images)))}
            return Message(RecordDict(content), reply_to=msg)

        return app

    def grid(self, app: ClientApp, clients: int = 2) -> InProcessGrid:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        grid = InProcessGrid(app, clients, "")
        for client, context in enumerate(grid._contexts.values()):
            context.node_config.clear()
            context.node_config.update(self.node_config(client))
        return grid

    def start(self, strategy: Any, app: ClientApp, rounds: int = 2, clients: int = 2, **more: Any) -> Result:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            arrays = ArrayRecord(self.reply(self.network()))
        config = ConfigRecord({"lr": RATE})
        random.seed(1)  # Flower samples by it
        result: Result = strategy.start(self.grid(app, clients), arrays, num_rounds=rounds, train_config=config, **more)
        return result

    def curious(self, strategy: Strategy | None = None, **more: Any) -> Any:
        given: dict[str, Any] = {"batch_size": self.batch_size, "learning_rate": RATE, "attacks": ["analytic"]}
        return fedleak.curious(strategy or FedAvg(fraction_evaluate=0.0), self.network, self.spec, **given | more)

    def plain(self, strategy: Strategy | None = None, **more: Any) -> str:
        """The digest of the model that the app trains by itself."""
        return digest(self.start(strategy or FedAvg(fraction_evaluate=0.0), self.client(), **more))

    def answering(self, **more: Any) -> ClientApp:
        return fedleak.answer(self.client(), self.batch, **more)


@pytest.fixture
def make() -> type[App]:
    """Makes apps."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    return App


@pytest.fixture
def app() -> App:
    """The plain one."""
    return App()


@pytest.fixture
def hashed() -> Callable[[Result], str]:
    """The digest of a model that was trained."""
    return digest


@pytest.fixture
def told() -> Callable[[Path], dict[str, list[dict[str, Any]]]]:
    """What a run folder says: its rows by file."""

    def read(path: Path) -> dict[str, list[dict[str, Any]]]:
        folder = RunFolder(path)
        return {name: folder.rows(f"{name}.jsonl") for name in ("rounds", "reconstructions", "problems")}

    return read
