"""Apps like those that are published for Flower, each in small: audited, or refused in one line before the first round.

What is recreated is what each does that others do not: its optimiser, its strategy, what it sends, how it counts, its mods, its
network. Each is given the two lines and images of its own; none may lose its training by that.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedProx, Result
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import DenseNet, VisionTransformer

from fedleak.errors import FedleakError
from fedleak.modalities.image import InputSpec

COLOUR = InputSpec((3, 32, 32), 10, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
GREY = InputSpec((1, 28, 28), 10, (0.1307,), (0.3081,))
MOMENTUM: Any = lambda model, rate: torch.optim.SGD(model.parameters(), rate, momentum=0.9)  # noqa: E731
QUICK: Any = [{"name": "inverting-gradients", "iterations": 2}]


class Net(nn.Module):
    """The small network of many tutorials, with its pooling and ReLU as functions."""

    def __init__(self, channels: int = 3, side: int = 5) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2 = nn.Linear(16 * side**2, 84), nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        logits: Tensor = self.fc2(functional.relu(self.fc1(x.flatten(1))))
        return logits


def grey_net() -> Net:
    return Net(1, 4)


def audited(app: Any, told: Any, hashed: Any, place: Path, rounds: int = 2, **more: Any) -> dict[str, list[dict[str, Any]]]:
    """Train with the two lines and without; return what the run folder says, with every update attacked and graded."""
    strategy = more.pop("strategy", lambda: FedAvg(fraction_evaluate=0.0))
    plain = app.plain(strategy(), rounds=rounds)
    looked_on = app.curious(strategy(), out=place / "run", attacks=QUICK, **more)
    assert hashed(app.start(looked_on, app.answering(), rounds=rounds)) == plain
    rows: dict[str, list[dict[str, Any]]] = told(place / "run")
    assert [row["error"] for row in rows["reconstructions"]] == [None] * (rounds * 2 * app.images)
    assert [failure for row in rows["rounds"] for failure in row.get("failures", ())] == []
    assert (place / "run" / "report.html").exists()
    return rows


def test_a_small_network_by_sgd_with_momentum(make: Any, told: Any, hashed: Any, tmp_path: Path) -> None:
    app = make(network=Net, spec=COLOUR, images=4, batch_size=2, optimiser=MOMENTUM)
    momentum = {"name": "sgd", "momentum": 0.9}
    assert audited(app, told, hashed, tmp_path, optimizer=momentum)["problems"] == []
    told_of = json.loads((tmp_path / "run" / "manifest.json").read_text())["scenario"]["local"]["optimizer"]
    assert told_of == momentum


def test_private_steps_that_the_app_takes_by_itself(make: Any, told: Any, hashed: Any, tmp_path: Path) -> None:
    engine = pytest.importorskip("opacus").PrivacyEngine

    class Private(type(make())):  # type: ignore[misc]
        def client(self) -> ClientApp:
            app = ClientApp()

            @app.train()
            def train(msg: Message, context: Context) -> Message:
                model = Net()
                model.load_state_dict(msg.content["arrays"].to_torch_state_dict())  # type: ignore[union-attr]
                data = torch.utils.data.TensorDataset(*self.batch(context, 1))
                loader = torch.utils.data.DataLoader(data, batch_size=2)
                noise = torch.Generator().manual_seed(7)
                private, optimiser, _ = engine(accountant="rdp").make_private(
                    module=model,
                    optimizer=MOMENTUM(model, 0.01),
                    data_loader=loader,
                    noise_multiplier=1.0,
                    max_grad_norm=1.0,
                    poisson_sampling=False,
                    noise_generator=noise,
                )
                for images, labels in loader:
                    optimiser.zero_grad()
                    functional.cross_entropy(private(COLOUR.normalize(images)), labels).backward()
                    optimiser.step()
                metrics = MetricRecord({"num-examples": len(data), "epsilon": 3.0, "target_delta": 1e-5})
                arrays = ArrayRecord(private._module.state_dict())
                return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)

            return app

    app = Private(network=Net, spec=COLOUR, images=4, batch_size=2)
    declared = [{"name": "dp-sgd", "max_norm": 1.0, "noise_multiplier": 1.0}]
    rows = audited(app, told, hashed, tmp_path, defenses=declared)
    assert {tuple(row["defenses"]) for row in rows["reconstructions"]} == {("dp-sgd",)}
    assert all(row["epsilon"]["0"] > 0 for row in rows["rounds"][1:])


class Saving(FedAvg):
    """Drives its rounds itself, saves what it found after each, keeps the best model, and halves the rate in round 5."""

    def set_place(self, place: Path) -> None:
        self.place = place

    def save(self, number: int, result: Result) -> None:
        found = {"round": number, **dict(result.train_metrics_clientapp[number]), "best": self.best}
        (self.place / "results.json").open("a").write(json.dumps(found) + "\n")

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Any) -> Any:
        if server_round == 5:
            config["lr"] = float(config["lr"]) / 2  # type: ignore[arg-type]
        return super().configure_train(server_round, arrays, config, grid)

    def start(  # type: ignore[override]
        self, grid: Any, initial_arrays: ArrayRecord, num_rounds: int = 3, train_config: Any = None, evaluate_fn: Any = None
    ) -> Result:
        self.best, result, arrays = 0.0, Result(), initial_arrays
        for number in range(1, num_rounds + 1):
            replies = grid.send_and_receive(messages=self.configure_train(number, arrays, train_config, grid), timeout=60)
            found, metrics = self.aggregate_train(number, replies)
            assert found is not None
            assert metrics is not None
            result.arrays = arrays = found
            result.train_metrics_clientapp[number] = metrics
            self.save(number, result)
        return result


def test_a_strategy_with_its_own_loop_and_clients_with_a_private_head(make: Any, told: Any, hashed: Any, tmp_path: Path) -> None:
    class Headed(type(make())):  # type: ignore[misc]
        def client(self) -> ClientApp:
            app = ClientApp()

            @app.train()
            def train(msg: Message, context: Context) -> Message:
                model = grey_net()
                model.load_state_dict(msg.content["arrays"].to_torch_state_dict())  # type: ignore[union-attr]
                if "head" in context.state:
                    model.fc2.load_state_dict(context.state["head"].to_torch_state_dict())  # type: ignore[union-attr]
                rate = float(msg.content["config"]["lr"])  # type: ignore[arg-type, index, call-overload]
                optimiser = MOMENTUM(model, rate)
                images, labels = self.batch(context, 1)
                shifted = functional.pad(images, (4, 4, 4, 4))[..., 3:31, 5:33]  # a crop, as augmentation makes them
                for rows in torch.arange(len(images)).split(self.batch_size):
                    optimiser.zero_grad()
                    loss = functional.cross_entropy(model(GREY.normalize(shifted[rows])), labels[rows])
                    loss.backward()
                    optimiser.step()
                context.state["head"] = ArrayRecord(model.fc2.state_dict())
                metrics = MetricRecord({"train_loss": float(loss.detach()), "num-examples": len(images), "rate": rate})
                return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=msg)

            return app

    app = Headed(network=grey_net, spec=GREY, images=4, batch_size=2)
    places = iter((tmp_path / "plain", tmp_path / "looked-on"))

    def strategy() -> Saving:
        own = Saving(fraction_evaluate=0.0)
        own.set_place(next(places))
        own.place.mkdir()
        return own

    audited(app, told, hashed, tmp_path, rounds=6, strategy=strategy)
    results = (tmp_path / "looked-on" / "results.json").read_text()
    assert results == (tmp_path / "plain" / "results.json").read_text()
    assert [json.loads(line)["rate"] for line in results.splitlines()] == [0.01] * 4 + [0.005] * 2


def test_mods_that_read_the_round_of_every_message(make: Any, told: Any, hashed: Any, tmp_path: Path) -> None:
    logged: list[tuple[int, str]] = []

    def logging_mod(msg: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        server_round: Any = msg.content["config"]["server-round"]  # type: ignore[index, call-overload]
        reply = call_next(msg, context)
        if msg.metadata.message_type == "train" and reply.has_content():
            logged.extend((server_round, name) for name in dict(reply.content.metric_records["metrics"]))
        return reply

    app = make(network=Net, spec=COLOUR, images=4, batch_size=2, optimiser=MOMENTUM, mods=[logging_mod])
    assert audited(app, told, hashed, tmp_path)["problems"] == []
    assert logged == [(number, "num-examples") for _ in range(2) for number in (1, 1, 2, 2)]


def densenet() -> nn.Module:
    model = DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8, num_classes=6)
    model.features.conv0 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
    return model


def test_a_densenet_by_adam_that_sends_its_number_of_batches(
    make: Any, told: Any, hashed: Any, tmp_path: Path, capsys: Any
) -> None:
    app = make(
        network=densenet,
        spec=InputSpec((1, 16, 16), 6),
        images=4,
        batch_size=2,
        optimiser=lambda model, rate: torch.optim.Adam(model.parameters(), 1e-5),
        metrics=lambda images: {"train_loss": 1.0, "num-examples": images // 2},
    )
    rows = audited(app, told, hashed, tmp_path, rounds=4, optimizer="adam", learning_rate=1e-5)
    assert {row["round"] for row in rows["reconstructions"]} == {1, 2, 3, 4}
    assert capsys.readouterr().out.count("sent its number of batches, 2, as 'num-examples', but batch() returned 4 images") == 2


def test_a_proximal_term(make: Any, told: Any, hashed: Any, tmp_path: Path) -> None:
    def pulled(outputs: Any, inputs: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, labels) + 0.005 * outputs.square().mean()

    app = make(network=Net, spec=COLOUR, images=4, batch_size=2, loss=pulled)
    rows = audited(app, told, hashed, tmp_path, strategy=lambda: FedProx(fraction_evaluate=0.0, proximal_mu=0.1))
    assert rows["problems"] == []


def test_nodes_that_know_a_path_and_no_partition(make: Any, told: Any, hashed: Any, tmp_path: Path) -> None:
    app = make(
        network=grey_net, spec=GREY, images=4, batch_size=2, node_config=lambda client: {"dataset-path": f"/data/{client}"}
    )
    rows = audited(app, told, hashed, tmp_path)
    assert {row["client"] for row in rows["reconstructions"]} == {1000, 1001}


class Text(nn.Module):
    """A classifier of tokens, called by keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(100, 8), nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        mixed = (self.embedding(input_ids) * attention_mask.unsqueeze(-1)).mean(1)
        return {"logits": self.head(mixed)}


class Autoencoder(nn.Module):
    """Gives the code of flattened images; its training step compares what the decoder makes of that."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 784))

    def forward(self, x: Tensor) -> Tensor:
        code: Tensor = self.encoder(x)
        return code


class Variational(nn.Module):
    """Gives what it rebuilt, and the moments of its code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.mean, self.spread = nn.Linear(784, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.decoder = nn.Linear(4, 784)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = torch.relu(self.encoder(x.flatten(1)))
        mean, spread = self.mean(hidden), self.spread(hidden)
        drawn = mean + torch.randn_like(mean) * (spread / 2).exp()
        return self.decoder(drawn).view_as(x), mean, spread


class Table(nn.Module):
    """Fourteen features of a person, and one probability."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.output = nn.Linear(14, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.output(torch.relu(self.layer1(x))))


def transformer() -> VisionTransformer:
    """All frozen but the head."""
    model = VisionTransformer(16, 8, 1, 2, 16, 32, num_classes=10)
    model.requires_grad_(False)
    model.heads.requires_grad_(True)
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], str]] = {
    "text": (Text, lambda: InputSpec((128,), 2), r"shape is \(128,\); expected \(channels, height, width\)"),
    "text as an image": (Text, lambda: InputSpec((1, 1, 128), 2), "Text: cannot take a batch of shape"),
    "an autoencoder": (Autoencoder, lambda: InputSpec((1, 28, 28), 10), "Autoencoder: cannot take a batch of shape"),
    "a variational autoencoder": (Variational, lambda: InputSpec((1, 28, 28), 10), "none of these has the shape of logits"),
    "a table": (Table, lambda: InputSpec((14,), 2), r"shape is \(14,\); expected \(channels, height, width\)"),
    "a table as an image": (Table, lambda: InputSpec((1, 1, 14), 2), r"Table: gives shape \(2, 1, 1, 1\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_classifier_of_images_is_refused_in_one_line(make: Any, tmp_path: Path, case: str) -> None:
    network, spec, said = REFUSED[case]
    with pytest.raises(FedleakError, match=said) as caught:
        make(network=network, spec=spec()).curious(out=tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_head_alone(make: Any, told: Any, hashed: Any, tmp_path: Path) -> None:
    app = make(
        network=transformer,
        spec=InputSpec((3, 16, 16), 10),
        reply=lambda model: model.heads.state_dict(),
        load=lambda model, state: model.heads.load_state_dict(state),
    )
    rows = audited(app, told, hashed, tmp_path)
    assert rows["problems"] == []
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["payload"]["trained"] == ["heads.head.weight", "heads.head.bias"]
