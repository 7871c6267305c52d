"""What does a round in process cost beside the training itself? FedAvg, 200 of 1,000 clients, LeNet, two steps of ten images.

    python tests/benchmarks/simulation.py --data DIR      # DIR holds CIFAR-10 as train*.parquet and test*.parquet
    python tests/benchmarks/simulation.py --data DIR --peer-python VENV/bin/python      # and against pfl-research
    python tests/benchmarks/simulation.py --sides plain off      # of images that are made up

``plain`` is a loop in PyTorch: the global weights are copied into one network, torch.optim.SGD takes two steps, the weights are
averaged; images are decoded before. ``off`` is fedleak with a server that is not curious, ``on`` one that is and attacks
nothing, ``spared`` the same with ``captures = "attacked"``, so that nothing is kept. ``pfl`` is pfl-research 0.6.0 (PyPI: pfl),
FederatedAveraging on its SimulatedBackend, with the same network and images decoded before; it wants dp-accounting below 0.6,
which flwr's extra 'dp' does not allow, so it needs an environment of its own, with the same version of torch.

Which fedleak is measured is for PYTHONPATH to say, by an absolute path. CPU seconds are user and system of the whole process, on
one thread. Each side is a process of its own that waits for its turn: after a round that is not counted, every side runs one
round, then every side the next. ``--turns`` starts all of them anew so many times. The ratios are of rounds side by side: their
median, and the range. Memory is resident, in MB of a million bytes, after the first round and after the last;
tests/benchmarks/scale.py has it over many rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

CLIENTS, SAMPLED, BATCH, STEPS, RATE = 1000, 200, 10, 2, 0.1
PER_CLIENT = BATCH * STEPS
SIDES = ("plain", "off", "on", "spared", "pfl")
MARK = "ROUND "
MB = 1e6

SCENARIO = """
name = "simulation"
seed = 1
secret = "e81c0f7b6a2d4395b0c7d1e6f9a83542"
[data]
source = "parquet"
path = {data}
shard_size = {per_client}
[model]
name = "lenet"
[federation]
clients = {clients}
clients_per_round = {sampled}
rounds = {rounds}
protocol = "fedavg"
[local]
batch_size = {batch}
learning_rate = {rate}
[server]
curious = {curious}
captures = {captures}
[evaluation]
every = 1000000
test_images = 10
"""


class Turns:
    """What a side calls after each round: it says what the round took, and waits until it is this side's turn again."""

    def __init__(self) -> None:
        self._before = self._used()

    @staticmethod
    def _used() -> float:
        return sum(os.times()[:4])

    def wait(self) -> None:
        """Tell CPU seconds and memory since the last turn began; return when the next one does."""
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        said = {"cpu": self._used() - self._before, "resident": pages * os.sysconf("SC_PAGE_SIZE") / MB}
        print(MARK + json.dumps(said), flush=True)
        sys.stdin.readline()
        self._before = self._used()


def lenet() -> Any:
    """Return the network that fedleak calls lenet."""
    from torch import nn

    layers, channels = [], 3
    for stride in (2, 2, 1, 1):
        layers += [nn.Conv2d(channels, 12, 5, stride, padding=2), nn.Sigmoid()]
        channels = 12
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * 8 * 8, 10))
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return network


def shards(folder: Path) -> list[tuple[Any, Any]]:
    """Return each client's images (20, 3, 32, 32) in [0, 1] and labels (20,)."""
    import numpy as np
    import torch

    images = torch.from_numpy(np.load(folder / "images.npy")).float() / 255
    labels = torch.from_numpy(np.load(folder / "labels.npy")).long()
    return list(zip(images.split(PER_CLIENT), labels.split(PER_CLIENT), strict=True))


def run_plain(folder: Path, rounds: int) -> None:
    """Train with a loop in PyTorch."""
    import torch
    from torch.nn import functional

    clients, network, turns = shards(folder), lenet(), Turns()
    parameters = list(network.parameters())
    optimizer = torch.optim.SGD(parameters, lr=RATE)
    weights = [parameter.detach().clone() for parameter in parameters]
    for _ in range(rounds):
        turns.wait()
        total = [torch.zeros_like(value) for value in weights]
        for client in torch.randperm(CLIENTS)[:SAMPLED].tolist():
            images, labels = clients[client]
            with torch.no_grad():
                for parameter, value in zip(parameters, weights, strict=True):
                    parameter.copy_(value)
            for batch in torch.randperm(PER_CLIENT).split(BATCH):
                optimizer.zero_grad()
                functional.cross_entropy(network(images[batch]), labels[batch]).backward()
                optimizer.step()
            for summed, parameter in zip(total, parameters, strict=True):
                summed.add_(parameter.detach(), alpha=PER_CLIENT)
        weights = [summed / (SAMPLED * PER_CLIENT) for summed in total]
    turns.wait()


def run_fedleak(folder: Path, rounds: int, side: str) -> None:
    """Train with fedleak in process."""
    import fedleak

    text = SCENARIO.format(
        data=json.dumps(str(folder / "data")),
        per_client=PER_CLIENT,
        clients=CLIENTS,
        sampled=SAMPLED,
        rounds=rounds,
        batch=BATCH,
        rate=RATE,
        curious=str(side != "off").lower(),
        captures='"attacked"' if side == "spared" else '"all"',
    )
    out = folder / f"{side}-{os.getpid()}"
    file = out.with_suffix(".toml")
    file.write_text(text, encoding="utf-8")
    turns = Turns()

    def listen(event: Any) -> None:
        if event.kind == "round-done":
            if event.facts["round"]:
                assert len(event.facts["clients"]) == SAMPLED, event.facts
                assert not event.facts["failures"], event.facts["failures"]
            turns.wait()

    fedleak.run(fedleak.load_scenario(file), out=out, device="cpu", listener=listen)


def run_pfl(folder: Path, rounds: int) -> None:
    """Train with pfl-research."""
    import numpy as np
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel
    from torch import Tensor, nn
    from torch.nn import functional

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = lenet()

        def loss(self, images: Tensor, labels: Tensor) -> Tensor:
            self.train()
            return functional.cross_entropy(self.network(images), labels)

        def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Weighted]:
            with torch.no_grad():
                loss = functional.cross_entropy(self.network(images), labels, reduction="sum")
            return {"loss": Weighted(float(loss), len(labels))}

    class Waiting(TrainingProcessCallback[PyTorchModel]):
        def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
            turns.wait()
            return False, Metrics()

    clients, network, random = shards(folder), Network(), np.random.RandomState(1)
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    federated = FederatedDataset(lambda user: PyTorchTensorDataset(clients[user]), lambda: int(random.randint(CLIENTS)))
    turns = Turns()
    turns.wait()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(rounds, 1_000_000, SAMPLED, None),
        backend=SimulatedBackend(federated, federated),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_batch_size=BATCH, local_num_epochs=1, local_learning_rate=RATE, local_max_grad_norm=None
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=PER_CLIENT),
        callbacks=[Waiting()],
    )


def run_side(side: str, folder: Path, rounds: int) -> None:
    """Be one side."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(1)
    if side == "plain":
        run_plain(folder, rounds)
    elif side == "pfl":
        run_pfl(folder, rounds)
    else:
        run_fedleak(folder, rounds, side)


class Side:
    """The process of one side, which runs a round when told to."""

    def __init__(self, side: str, folder: Path, rounds: int, python: str) -> None:
        command = [python, str(Path(__file__).resolve()), "--side", side, str(folder), str(rounds)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._name, self._log = side, folder / f"{side}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.hear()

    def hear(self) -> dict[str, float]:
        """Wait for the end of what it does, and return what it says of that."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                return dict(json.loads(line.removeprefix(MARK)))
        sys.exit(f"{self._name} broke off:\n{self._log.read_text(encoding='utf-8')[-3000:]}")

    def round(self) -> dict[str, float]:
        """Let it run one round."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self.hear()

    def end(self) -> None:
        """End it, without what it would do after its last round."""
        self._process.kill()
        self._process.wait()


def prepare(folder: Path, data: Path | None) -> None:
    """Put the images into ``folder``: encoded in ``data/`` for fedleak, decoded as arrays for the others."""
    import io

    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    if data is None:
        from scale import write_images

        write_images(folder / "data", CLIENTS * PER_CLIENT)
    else:
        (folder / "data").symlink_to(data.resolve())
    rows = [row for file in sorted((folder / "data").glob("train*.parquet")) for row in pq.read_table(file).to_pylist()]
    rows = rows[: CLIENTS * PER_CLIENT]
    if len(rows) < CLIENTS * PER_CLIENT:
        sys.exit(f"{data}: {len(rows)} training images; expected {CLIENTS * PER_CLIENT} at least")
    pixels = [np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")).transpose(2, 0, 1) for row in rows]
    np.save(folder / "images.npy", np.stack(pixels))
    np.save(folder / "labels.npy", np.array([row["label"] for row in rows]))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[list[dict[str, float]]]]:
    """Return, for each side and turn, what each of its rounds took; the first one, which is not counted, among them."""
    found: dict[str, list[list[dict[str, float]]]] = {side: [] for side in options.sides}
    for turn in range(options.turns):
        python: Callable[[str], str] = lambda side: options.peer_python if side == "pfl" else sys.executable  # noqa: E731
        sides = {side: Side(side, folder, options.rounds + 2, python(side)) for side in options.sides}
        try:
            for side in sides:
                found[side].append([])
            for number in range(options.rounds + 1):
                for side, process in sides.items():
                    found[side][-1].append(process.round())
                line = "  ".join(f"{side} {found[side][-1][-1]['cpu']:.2f}" for side in sides)
                print(f"turn {turn + 1}, {f'round {number}' if number else 'warm-up'}, CPU s: {line}", flush=True)
        finally:
            for process in sides.values():
                process.end()
    return found


def tell(found: dict[str, list[list[dict[str, float]]]]) -> None:
    """Print CPU seconds, ratios and memory."""
    cpu = {side: [row["cpu"] for turn in turns for row in turn[1:]] for side, turns in found.items()}
    print(f"\n{'':8}{'CPU s a round':>24}{'memory, MB':>16}")
    for side, values in cpu.items():
        first, last = (max(turn[place]["resident"] for turn in found[side]) for place in (0, -1))
        print(f"{side:8}{_spread(values):>24}{f'{first:.0f} to {last:.0f}':>16}")
    for one, other in (("off", "plain"), ("off", "pfl"), ("on", "off"), ("spared", "off"), ("pfl", "plain")):
        if one in cpu and other in cpu:
            ratios = [above / below for above, below in zip(cpu[one], cpu[other], strict=True)]
            print(f"{one + ' / ' + other:16}{_spread(ratios)} x")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-10's Parquet files")
    parser.add_argument("--peer-python", metavar="PATH", help="the Python of an environment with pfl-research and PyTorch")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="by default all, pfl only with --peer-python")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of each turn (default 5)")
    parser.add_argument("--turns", type=int, default=2, help="how often to start every side anew (default 2)")
    parser.add_argument("--side", nargs=3, metavar=("SIDE", "FOLDER", "ROUNDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run_side(options.side[0], Path(options.side[1]), int(options.side[2]))
        return
    options.sides = options.sides or [side for side in SIDES if side != "pfl" or options.peer_python]
    if "pfl" in options.sides and not options.peer_python:
        parser.error("side pfl needs --peer-python")
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch), options.data)
        tell(measure(options, Path(scratch)))


if __name__ == "__main__":
    main()
