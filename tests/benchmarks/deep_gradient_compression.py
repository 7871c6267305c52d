"""Measure what sparsity costs in accuracy: no defense, plain pruning, and Deep Gradient Compression, in a real federation.

LeNet with ReLU on CIFAR-10 at 16 x 16 pixels (Parquet files: 20,000 training and 3,000 test images), FedSGD, 10 IID clients of
which 5 are drawn in each round, batches of 64. "feedback" is Deep Gradient Compression
without momentum; --scale is what arms with momentum multiply the learning rate by.

    python tests/benchmarks/deep_gradient_compression.py --data $FEDLEAK_DATA/cifar10

found at 99 % sparsity (one seed, 40 to 50 CPU seconds an arm; "last tenth" is the mean accuracy of rounds 271 to 300):

    arm           seed    round 30    round 75   round 150   round 225   round 300  last tenth
    none             1       0.100       0.246       0.344       0.381       0.365       0.391
    pruning          1       0.101       0.106       0.145       0.234       0.277       0.265
    feedback         1       0.100       0.156       0.278       0.308       0.405       0.395
    dgc              1       0.100       0.121       0.253       0.348       0.396       0.387
    dgc-warmup       1       0.100       0.213       0.226       0.284       0.327       0.300    --momentum 0.9 --scale 0.3333
    dgc              1       0.100       0.100       0.177       0.260       0.299       0.273    --momentum 0.9 --scale 0.1
    dgc              1       0.148       0.166       0.106       0.100       0.100       0.103    --momentum 0.9 --scale 1

It keeps the accuracy within half a point of none, with a momentum of 0.5 and without, where plain pruning loses 13 points. With
the paper's momentum of 0.9 it does not: at the learning rate of the others it diverges, and at lower ones it learns more slowly
than they do in these 300 rounds. No arm had a server's momentum to compare with, which FedSGD has not. Measured before scenarios
had a secret, on other draws of batches.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch

import fedleak
from fedleak.data.images import PillowImages
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import Scenario, parse_scenario

ARMS = ("none", "pruning", "feedback", "dgc", "dgc-warmup")


def defense_of(arm: str, ratio: float, momentum: float, rounds: int) -> list[dict[str, Any]]:
    """Return the defenses of an arm."""
    dgc = {"name": "deep-gradient-compression", "ratio": ratio, "momentum": momentum}
    return {
        "none": [],
        "pruning": [{"name": "gradient-pruning", "ratio": ratio}],
        "feedback": [dgc | {"momentum": 0.0}],
        "dgc": [dgc],
        "dgc-warmup": [dgc | {"warmup": rounds // 10}],
    }[arm]


def scenario_of(arm: str, options: argparse.Namespace, seed: int) -> Scenario:
    """Return the federation of an arm: nothing is recorded or attacked."""
    scale = options.scale if arm.startswith("dgc") else 1.0
    fedavg = options.protocol == "fedavg"
    return parse_scenario(
        {
            "name": f"dgc-{arm}",
            "seed": seed,
            "secret": "5b1f4d0c9e7a42d68f30c1b7a9e6d254",
            "data": {
                "source": "parquet",
                "path": options.data,
                "partition": options.partition,
                "image_size": options.pixels,
                "normalize": True,
            },
            "model": {"name": "lenet", "activation": "relu"},
            "federation": {
                "clients": options.clients,
                "clients_per_round": options.sampled,
                "rounds": options.rounds,
                "protocol": options.protocol,
            },
            "local": {
                "batch_size": options.batch,
                "learning_rate": options.learning_rate * scale,
                **({"steps": options.steps} if fedavg else {}),
            },
            "server": {"curious": False},
            "defenses": defense_of(arm, options.ratio, options.momentum, options.rounds),
        }
    )


def decode_once() -> None:
    """Keep decoded images: with a network this small, decoding the test split in every round is most of the cost."""
    PillowImages._decode = cache(PillowImages._decode)  # type: ignore[method-assign]


def main() -> None:
    """Read the options, train each arm, and print test accuracy by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10's Parquet files")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--ratio", type=float, default=0.99, help="share that is not sent (default 0.99)")
    parser.add_argument("--momentum", type=float, default=0.5, help="of Deep Gradient Compression (default 0.5)")
    parser.add_argument("--learning-rate", type=float, default=0.3)
    parser.add_argument("--scale", type=float, default=0.5, help="of the learning rate with momentum (default 0.5)")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--sampled", type=int, default=5, help="clients in a round (default 5)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pixels", type=int, default=16, help="side of the images (default 16)")
    parser.add_argument("--steps", type=int, default=4, help="local steps, with fedavg (default 4)")
    parser.add_argument("--protocol", choices=["fedsgd", "fedavg"], default="fedsgd")
    parser.add_argument("--partition", default="iid")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    decode_once()
    shown = [round(part * options.rounds) for part in (0.1, 0.25, 0.5, 0.75, 1)]
    print(f"{'arm':12s}{'seed':>6s}" + "".join(f"{f'round {at}':>12s}" for at in shown) + f"{'last tenth':>12s}{'CPU s':>8s}")
    for arm in options.arms:
        for seed in options.seeds:
            begun = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                fedleak.run(scenario_of(arm, options, seed), out=Path(folder) / "run")
                rows = RunFolder(Path(folder) / "run").rows("rounds.jsonl")
            accuracy = [float(row["accuracy"]) for row in rows]
            late = statistics.mean(accuracy[-max(1, options.rounds // 10) :])
            cells = "".join(f"{accuracy[at - 1]:12.3f}" for at in shown)
            print(f"{arm:12s}{seed:6d}{cells}{late:12.3f}{time.process_time() - begun:8.0f}", flush=True)


if __name__ == "__main__":
    main()
