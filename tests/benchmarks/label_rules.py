"""Measure how many labels each label rule restores, on networks at initialisation.

Accuracy is the size of the overlap of the restored with the true labels, both with repeats, divided by the batch size;
the table shows its mean over freshly drawn networks, each with its own batch. Images are random square crops of foolbox's
20 ImageNet images at 32 x 32 pixels, labels are drawn independently of them from 10 classes, so repeats come as they do by
chance. Networks are in eval mode. "guess" draws labels at random; "-" where a rule does not apply to the batch.

    python tests/benchmarks/label_rules.py --json label_rules.json

The means of its 10 draws (176 CPU seconds, one thread); llg+ is llg-plus, bias-c. bias-corrected, interp. interpolated:

    network     B  guess  row-min   llg  llg+  bias-c.  zero-shot  interp.  ilrg  consistent
    lenet       1   0.20     1.00  1.00  1.00     1.00       1.00     1.00  1.00        1.00
    lenet       4   0.23     0.72  0.85  1.00     0.85       1.00     1.00  0.97        1.00
    lenet       8   0.41     0.68  0.82  0.97     0.82       0.97     0.97  0.99        0.99
    lenet      16   0.62        -  0.84  0.98     0.84       0.98     0.98  0.98        1.00
    lenet      64   0.77        -  0.78  0.98     0.78       0.98     0.98  0.93        0.98
    convnet     1   0.10     1.00  1.00  1.00     1.00       1.00     1.00  1.00        1.00
    convnet     4   0.38     0.90  1.00  1.00     1.00       1.00     1.00  1.00        1.00
    convnet     8   0.47     0.71  1.00  1.00     0.97       1.00     1.00  1.00        1.00
    convnet    16   0.57        -  0.71  1.00     0.68       1.00     1.00  1.00        1.00
    convnet    64   0.80        -  0.63  1.00     0.62       1.00     1.00  1.00        1.00
    resnet20    1   0.10     1.00  1.00  1.00     1.00       1.00     1.00  1.00        1.00
    resnet20    4   0.33     0.72  0.78  0.93     0.80       0.88     0.88  0.93        0.97
    resnet20    8   0.38     0.60  0.82  0.86     0.84       0.79     0.79  0.96        1.00
    resnet20   16   0.62        -  0.83  0.78     0.86       0.77     0.77  0.99        0.98
    resnet20   64   0.79        -  0.84  0.83     0.84       0.83     0.83  0.98        0.99
    mlp         1   0.00     1.00  1.00  1.00     1.00       1.00     1.00  1.00        1.00
    mlp         4   0.17     0.72  1.00  1.00     1.00       1.00     1.00  1.00        1.00
    mlp         8   0.47     0.78  0.84  0.97     1.00       0.97     0.97  1.00        1.00
    mlp        16   0.53        -  0.72  0.97     0.71       0.97     0.97  1.00        1.00
    mlp        64   0.78        -  0.53  0.97     0.49       0.97     0.97  0.95        1.00

With local FedAvg steps the mean gradient mixes those of different models, and on the first two networks no rule is exact.
Five draws of

    python tests/benchmarks/label_rules.py --steps 4 --batches 8 16 64 --draws 5 --networks lenet resnet20 mlp

gave, at B = 8 / 16 / 64: interpolated .88/.88/.81 on lenet, .54/.75/.75 on resnet20, .97/.97/.97 on mlp; consistent .82/.86/.83,
.67/.48/.53, 1/1/1; zero-shot .65/.72/.63, .38/.38/.34, .97/.97/.97; guess .35/.74/.75, .42/.66/.81, .53/.53/.78.

These tables are older than the share of 0.15 from which 'consistent' takes all classes to be equally likely: with it, lenet at
B = 64 still gives .984, and resnet20 .972 instead of .989. On networks trained on CIFAR-10 (trained.py), with batches of its
test images,

    python tests/benchmarks/label_rules.py --trained trained --data $FEDLEAK_DATA/cifar10 --networks resnet20 --draws 8 \\
        --seed 1 --batches 4 8 --rules bias-corrected zero-shot llg-plus consistent certified

gave, at B = 4 / 8: guess .250/.406, bias-corrected .844/.672, zero-shot .250/.234, llg-plus .688/.562, consistent .750/.688,
certified .906/.688 (with the share at 0.1). CIFAR-10's test labels are balanced, which favours 'consistent' there; clients
with skewed labels were not measured. --auxiliary grants 500 other test images; --mode train is for BatchNorm in train mode.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from trained import RECIPES, cifar10, trained

import fedleak
from fedleak.attacks.labels.base import label_rules
from fedleak.data.federated import FederatedData, federated_data
from fedleak.errors import AttackError
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import LocalTraining, Observation
from fedleak.scenario.schema import Data, Model
from fedleak.seeding import Seed

PIXELS = 32
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
NETWORKS: dict[str, dict[str, Any]] = {
    "lenet": {"name": "lenet"},
    "convnet": {"name": "convnet", "width": 16},
    "resnet20": {"name": "resnet20"},
    "mlp": {"name": "mlp"},
    "convnet-group": {"name": "convnet", "width": 16, "norm": "group"},
    "lenet-tanh": {"name": "lenet", "activation": "tanh"},
    "vit": {"name": "vit"},
}
SHORT = ("lenet", "convnet", "resnet20", "mlp")
AUXILIARY = 6
RULES = ("row-min", "llg", "llg-plus", "bias-corrected", "zero-shot", "interpolated", "ilrg", "consistent")


def crops(count: int, seed: Seed) -> Tensor:
    """Return random square crops (count, 3, 32, 32) of the sample images, from a third of their height to all of it."""
    data = federated_data(Data(source="samples-imagenet", partition="order", image_size=128), 1, 0)
    images = data.images(range(20))
    random = seed.numpy()
    taken = []
    for _ in range(count):
        image = images[random.integers(len(images))]
        side = int(random.integers(image.shape[-1] // 3, image.shape[-1] + 1))
        top, left = random.integers(0, image.shape[-1] - side + 1, 2)
        square = image[None, :, top : top + side, left : left + side]
        taken.append(functional.interpolate(square, PIXELS, mode="bilinear", antialias=True, align_corners=False))
    return torch.cat(taken).clamp(0, 1)


def fedavg(
    model: nn.Module, observation: Observation, images: Tensor, labels: Tensor, options: argparse.Namespace
) -> Observation:
    """Return what the server sees after local SGD steps on equal parts of the batch, in order."""
    steps, rate = options.steps, options.learning_rate
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    for part in torch.arange(len(images)).tensor_split(steps):
        loss = functional.cross_entropy(model(observation.input.normalize(images[part])), labels[part])
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(model.parameters(), gradient, strict=True):
                parameter -= rate * slope
    local = LocalTraining(len(images), len(images) // steps, steps, learning_rate=rate, mode="eval")
    received = {name: value.detach().clone() for name, value in model.named_parameters()}
    return replace(observation, kind="weights", parameters=start, update=received, local=local)


def accuracy(restored: tuple[int, ...], labels: list[int]) -> float:
    """Return the share of ``labels`` that ``restored`` holds, counted with repeats."""
    return sum((Counter(restored) & Counter(labels)).values()) / len(labels)


def victims(
    network: str, size: int, options: argparse.Namespace, pool: Tensor
) -> Iterator[tuple[nn.Module, Observation, Tensor]]:
    """Yield, for each draw, a network at initialisation, what the server sees of a batch, and the batch's labels."""
    spec = InputSpec((3, PIXELS, PIXELS), options.classes, **IMAGENET)
    for draw in range(options.draws):
        seed = Seed(options.seed).derive(network, size, draw)
        random = seed.numpy()
        images = pool[torch.from_numpy(random.permutation(len(pool))[:size])]
        labels = torch.from_numpy(random.integers(0, options.classes, size))
        model = build_model(Model.model_validate(NETWORKS[network]), spec, seed.value).train(options.mode == "train")
        observation = fedleak.observe(model, images, labels, input=spec)
        if options.steps > 1:
            observation = fedavg(model, observation, images, labels, options)
        yield model, observation, labels


def trained_victims(
    network: str, size: int, options: argparse.Namespace, data: FederatedData
) -> Iterator[tuple[nn.Module, Observation, Tensor]]:
    """Yield the same for a trained network and CIFAR-10's test images; every sixth of these is kept as auxiliary image."""
    test = data.source.test
    assert test is not None, "CIFAR-10 has a test split"
    truth = torch.as_tensor(test.labels).long()
    held = [index for index in range(len(truth)) if index % AUXILIARY]
    auxiliary = test.load(range(0, len(truth), AUXILIARY)) if options.auxiliary else None
    for draw in range(options.draws):
        random = Seed(options.seed).derive(network, size, draw).numpy()
        chosen = random.permutation(held)[:size].tolist()
        model = trained(network, data, options.trained).train(options.mode == "train")
        observation = fedleak.observe(model, test.load(chosen), truth[chosen], input=data.input)
        yield model, replace(observation, surrogate=auxiliary), truth[chosen]


def measure(
    network: str, size: int, options: argparse.Namespace, pool: Tensor, data: FederatedData | None
) -> list[dict[str, Any]]:
    """Run all rules on one network and batch size; one row for each draw of network and batch."""
    rows = []
    cell = victims(network, size, options, pool) if data is None else trained_victims(network, size, options, data)
    for draw, (model, observation, labels) in enumerate(cell):
        classes, random = observation.input.num_classes, Seed(options.seed).derive("guess", network, size, draw).numpy()
        found: dict[str, float | None] = {"guess": accuracy(tuple(random.integers(0, classes, size).tolist()), labels.tolist())}
        for name in options.rules:
            try:
                found[name] = accuracy(label_rules.get(name)().restore(observation, model), labels.tolist())
            except AttackError:
                found[name] = None
        rows.append({"network": network, "classes": classes, "batch": size, "draw": draw, **found})
    return rows


def main() -> None:
    """Read the options, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, help="by default lenet convnet resnet20 mlp, or all trained")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16, 64], metavar="B", help="batch sizes")
    parser.add_argument("--rules", nargs="+", default=list(RULES), help="label rules")
    parser.add_argument("--classes", type=int, default=10, help="number of classes at initialisation (default 10)")
    parser.add_argument("--mode", choices=["eval", "train"], default="eval", help="of the client's BatchNorm (default eval)")
    parser.add_argument("--draws", type=int, default=10, help="networks and batches for each cell (default 10)")
    parser.add_argument("--steps", type=int, default=1, help="local FedAvg steps; 1 sends the gradient (default 1)")
    parser.add_argument("--learning-rate", type=float, default=0.01, help="of the local steps (default 0.01)")
    parser.add_argument("--trained", type=Path, metavar="DIR", help="trained networks, kept here, on CIFAR-10's test images")
    parser.add_argument("--data", metavar="DIR", help="folder with CIFAR-10's Parquet files, for --trained")
    parser.add_argument("--auxiliary", action="store_true", help="grant 500 other test images; for --trained")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows here")
    options = parser.parse_args()
    if (options.trained is None) != (options.data is None) or (options.auxiliary and options.trained is None):
        parser.error("--trained and --data go together, and --auxiliary needs both")
    if options.trained is not None and options.steps > 1:
        parser.error("--steps is for networks at initialisation; leave out --trained")
    torch.set_num_threads(1)
    begin = time.process_time()
    data = None if options.data is None else cifar10(options.data)
    pool = crops(256, Seed(options.seed).derive("crops"))
    names = ["guess", *options.rules]
    print(f"{'network':14s}{'B':>3s}" + "".join(f"{name:>15s}" for name in names))
    rows: list[dict[str, Any]] = []
    for network in options.networks or (SHORT if data is None else RECIPES):
        for size in (size for size in options.batches if size >= options.steps and (size > 1 or options.mode == "eval")):
            cell = measure(network, size, options, pool, data)
            rows += cell
            columns = [[row[name] for row in cell if row[name] is not None] for name in names]
            shown = "".join(f"{statistics.mean(column):15.3f}" if column else f"{'-':>15s}" for column in columns)
            print(f"{network:14s}{size:3d}{shown}", flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps({"options": vars(options), "rows": rows}, default=str, indent=1))
    print(f"{time.process_time() - begin:.0f} CPU seconds")


if __name__ == "__main__":
    main()
