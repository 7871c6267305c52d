"""fedleak around an app in the shape of Flower's PyTorch quickstart: its network, momentum SGD, several local epochs."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor, nn
from torch.nn import functional

import fedleak
from fedleak.data.federated import federated_data
from fedleak.engines.inprocess import InProcessGrid
from fedleak.errors import ScenarioError
from fedleak.experiment.attack_again import attack_run
from fedleak.modalities.image import InputSpec
from fedleak.models.digest import model_digest
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import Data

SPEC = InputSpec((3, 32, 32), 10, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CIFAR = Path(os.environ.get("FEDLEAK_DATA", "")) / "cifar10"


class Net(nn.Module):
    """The small CNN of PyTorch's 60-minute tutorial, which Flower's quickstart trains."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(functional.relu(self.conv1(x)))
        x = self.pool(functional.relu(self.conv2(x)))
        x = functional.relu(self.fc2(functional.relu(self.fc1(x.flatten(1)))))
        out: Tensor = self.fc3(x)
        return out


Images = Callable[[int], tuple[Tensor, Tensor]]


def client_app(shard: Images, batch_size: int, epochs: int) -> ClientApp:
    """The user's ClientApp: shuffled batches, SGD with momentum."""
    app = ClientApp()

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        model = Net()
        model.load_state_dict(msg.content["arrays"].to_torch_state_dict())  # type: ignore[union-attr]
        images, labels = shard(int(context.node_config["partition-id"]))
        rate = float(msg.content["config"]["lr"])  # type: ignore[arg-type, index, call-overload]
        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
        generator = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
        for _ in range(epochs):
            for rows in torch.randperm(len(images), generator=generator).split(batch_size):
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(SPEC.normalize(images[rows])), labels[rows])
                loss.backward()
                optimizer.step()
        metrics = MetricRecord({"train_loss": float(loss.detach()), "num-examples": len(images)})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=msg)

    @app.evaluate()
    def evaluate(msg: Message, context: Context) -> Message:
        metrics = MetricRecord({"eval_loss": 1.0, "num-examples": 4})
        return Message(RecordDict({"metrics": metrics}), reply_to=msg)

    return app


def serve(app: ClientApp, strategy: Strategy, clients: int, rounds: int, rate: float) -> str:
    """The user's ServerApp; return the SHA-256 of its model."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    with torch.random.fork_rng():
        torch.manual_seed(1)
        arrays = ArrayRecord(Net().state_dict())
    result = strategy.start(
        grid=InProcessGrid(app, clients, ""),
        initial_arrays=arrays,
        train_config=ConfigRecord({"lr": rate}),
        num_rounds=rounds,
        evaluate_fn=lambda server_round, arrays: MetricRecord({"accuracy": 0.1, "loss": 2.3}),
    )
    return model_digest({name: array.numpy() for name, array in result.arrays.items()})


def samples(per_client: int) -> Images:
    data = federated_data(Data(source="samples", partition="order"), 1, 1)

    def shard(client: int) -> tuple[Tensor, Tensor]:
        rows = range(client * per_client, (client + 1) * per_client)
        return data.images(rows), data.labels(rows)

    return shard


def batch_of(shard: Images) -> Any:
    return lambda context, server_round: shard(int(context.node_config["partition-id"]))


def attack(iterations: int, name: str = "inverting-gradients", **more: Any) -> dict[str, Any]:
    return {"name": name, "iterations": iterations, **more}


def test_two_lines_give_a_run_folder_and_change_no_bit_of_the_model(tmp_path: Path) -> None:
    shard = samples(4)
    plain = serve(client_app(shard, 2, 2), FedAvg(), 2, 2, 0.01)
    app = fedleak.answer(client_app(shard, 2, 2), batch_of(shard))
    strategy = fedleak.curious(
        FedAvg(), Net, SPEC, batch_size=2, epochs=2, learning_rate=0.01, attacks=[attack(3)], out=tmp_path / "run"
    )
    assert serve(app, strategy, 2, 2, 0.01) == plain
    folder = RunFolder.open(tmp_path / "run")
    assert [(row["round"], row["accuracy"]) for row in folder.rows("rounds.jsonl")] == [(0, 0.1), (1, 0.1), (2, 0.1)]
    rows = folder.rows("reconstructions.jsonl")
    assert {(row["round"], row["client"]) for row in rows} == {(1, 0), (1, 1), (2, 0), (2, 1)}
    assert len(rows) == 16
    assert all(row["metrics"]["psnr"] > 5 and row["label"] is not None and row["truth"] for row in rows)
    assert folder.manifest["scenario"]["federation"]["clients"] == 2
    page = (tmp_path / "run" / "report.html").read_text()
    assert "inverting-gradients" in page
    assert "my-app" in page
    for call in (lambda: fedleak.run(None, resume=folder.path), lambda: attack_run(folder.path, ["inverting-gradients"])):
        with pytest.raises(ScenarioError, match="of an app of one's own, by fedleak.curious.* start the app again"):
            call()


def test_labels_and_membership_are_told_where_no_image_comes_back(tmp_path: Path) -> None:
    shard = samples(4)
    plain = serve(client_app(shard, 4, 1), FedAvg(), 2, 2, 0.01)
    app = fedleak.answer(client_app(shard, 4, 1), batch_of(shard))
    given = {"batch_size": 4, "learning_rate": 0.01, "attacks": [attack(1)], "membership": True}
    strategy = fedleak.curious(FedAvg(), Net, SPEC, **given, out=tmp_path / "run")
    assert serve(app, strategy, 2, 2, 0.01) == plain
    folder = RunFolder.open(tmp_path / "run")
    rows = folder.rows("inferences.jsonl")
    assert [(row["round"], row["client"]) for row in rows] == [(r, c) for r in (1, 2) for c in range(2)]
    assert all(row["labels"]["right"] > 0.4 for row in rows)
    assert all(sum(one["member"] is True for one in row["membership"][0]["candidates"]) == 4 for row in rows)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Labels: read off 4 update(s)" in page
    assert "Membership by gradient-alignment: AUC" in page
    assert "other clients" in page
    with pytest.raises(ScenarioError, match="evaluation.membership: a test is handed clients' images"):
        fedleak.curious(FedAvg(), Net, SPEC, **given, truth="score", out=tmp_path / "other")


def test_images_stay_with_a_client_that_does_not_reveal_them(tmp_path: Path) -> None:
    shard = samples(2)
    app = fedleak.answer(client_app(shard, 2, 1), batch_of(shard), reveal=False)
    for truth in ("reveal", "score"):
        strategy = fedleak.curious(
            FedAvg(), Net(), SPEC, batch_size=2, learning_rate=0.01, attacks=[attack(2)], truth=truth, out=tmp_path / truth
        )
        serve(app, strategy, 2, 1, 0.01)
        rows = RunFolder(tmp_path / truth).rows("reconstructions.jsonl")
        assert len(rows) == 4
        assert all(row["label"] is None and row["truth"] is None and row["metrics"]["psnr"] for row in rows)
        assert not list((tmp_path / truth / "images").glob("*truth*"))


def test_without_the_clients_line_training_goes_on_and_the_line_is_named(tmp_path: Path, capsys: Any) -> None:
    shard = samples(2)
    plain = serve(client_app(shard, 2, 1), FedAvg(), 2, 1, 0.01)
    strategy = fedleak.curious(FedAvg(), Net, SPEC, batch_size=2, learning_rate=0.01, out=tmp_path / "run")
    assert serve(client_app(shard, 2, 1), strategy, 2, 1, 0.01) == plain
    assert capsys.readouterr().out.count("fedleak.answer(app, batch)") == 1
    rows = RunFolder(tmp_path / "run").rows("reconstructions.jsonl")
    assert ["add fedleak.answer(app, batch)" in row["error"] for row in rows] == [True, True]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "add fedleak.answer(app, batch)" in page
    assert "No update was attacked" in page


def test_a_batch_that_is_no_batch_fails_the_grading_only(tmp_path: Path) -> None:
    shard = samples(2)
    normalised: Any = lambda *_: (shard(0)[0] * 2 - 1, shard(0)[1])  # noqa: E731
    settings: Any = {"batch_size": 2, "learning_rate": 0.01, "attacks": [attack(2)]}
    for wrong, said in ((normalised, "before the normalisation"), (lambda *_: 1 / 0, "division")):
        app = fedleak.answer(client_app(shard, 2, 1), wrong)
        out = tmp_path / said.split()[0]
        serve(app, fedleak.curious(FedAvg(), Net, SPEC, **settings, out=out), 2, 1, 0.01)
        assert [said in row["error"] for row in RunFolder(out).rows("reconstructions.jsonl")] == [True, True]


SIMULATED = """
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

import fedleak
from fedleak.modalities.image import InputSpec

spec = InputSpec((3, 8, 8), 10)
client, server = ClientApp(), ServerApp()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 10))


def batch(context, server_round):
    generator = torch.Generator().manual_seed(int(context.node_config["partition-id"]))
    return torch.rand(1, 3, 8, 8, generator=generator), torch.tensor([3])


@client.train()
def train(message, context):
    model = net()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images, labels = batch(context, 1)
    nn.functional.cross_entropy(model(spec.normalize(images)), labels).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


@server.main()
def main(grid, context):
    strategy = FedAvg(fraction_evaluate=0.0)
    strategy = fedleak.curious(strategy, net, spec, batch_size=1, learning_rate=0.1, attacks=["closed-form"], out="run")
    strategy.start(grid, ArrayRecord(net().state_dict()), num_rounds=2)


if __name__ == "__main__":
    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 1}}
    run_simulation(server, fedleak.answer(client, batch), num_supernodes=2, backend_config=resources)
"""


@pytest.mark.slow
def test_it_works_in_flowers_own_simulation(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(SIMULATED)
    environment = {**os.environ, "RAY_ADDRESS": "local"}  # and no cluster that happens to run here
    command = [sys.executable, "app.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = RunFolder(tmp_path / "run").rows("reconstructions.jsonl")
    assert {(row["round"], row["client"]) for row in rows} == {(1, 0), (1, 1), (2, 0), (2, 1)}
    assert min(row["metrics"]["psnr"] for row in rows) > 60
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.is_dir(), reason="CIFAR-10's Parquet files are not here: set FEDLEAK_DATA")
@pytest.mark.parametrize(("images", "epochs", "lowest", "highest"), [(1, 1, 2.0, 15.0), (32, 3, -3.0, 1.0)])
def test_the_quickstarts_own_setting_gives_its_classes_away_and_not_its_images(
    tmp_path: Path, images: int, epochs: int, lowest: float, highest: float
) -> None:
    """Batches of 32 and three epochs of momentum SGD, against one image and one step; run with -s for the figures."""
    data = federated_data(Data(source="parquet", path=CIFAR, partition="order"), 100, 1)

    def shard(client: int) -> tuple[Tensor, Tensor]:
        rows = data.shard(client)[:images]
        return data.images(rows), data.labels(rows)

    app = fedleak.answer(client_app(shard, 32, epochs), batch_of(shard))
    strategy = fedleak.curious(
        FedAvg(),
        Net,
        SPEC,
        batch_size=32,
        epochs=epochs,
        learning_rate=0.01,
        out=tmp_path / "run",
        name="quickstart app",
        attacks=[attack(100, labels="zero-shot")],
    )
    serve(app, strategy, 2, 1, 0.01)
    rows = RunFolder(tmp_path / "run").rows("reconstructions.jsonl")
    assert len(rows) == 2 * images
    assert not [row for row in rows if row["error"]]
    gain = sum(row["metrics"]["psnr"] - row["baseline"]["mean_image"]["psnr"] for row in rows) / len(rows)
    classes = []
    for client in (0, 1):
        true, restored = (Counter(row[key] for row in rows if row["client"] == client) for key in ("label", "label_restored"))
        classes.append(sum((true & restored).values()) / images)
    print(f"{images} image(s), {epochs} epoch(s): {gain:+.1f} dB over the mean image; labels restored, as counts: {classes}")
    assert lowest < gain < highest
    assert min(classes) >= 0.9
