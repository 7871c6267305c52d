"""Measure what each term of GradInversion (arXiv 2104.07586) adds: total variation, BatchNorm's statistics, the group of seeds.

Each batch is two of foolbox's CIFAR-10 images at 16 x 16 pixels behind one gradient, in train mode, of a freshly drawn
network of three convolutions with BatchNorm; the labels and the buffers that the client sent back are granted. The running
statistics come from the other 18 images. Each arm has the terms of the one before it: "exact" takes the batch's own statistics
in place of the running ones; "seeds" is the best of four by own loss, which the groups pull together. Weights are the
attack's defaults, chosen on images 0 to 5; the batches are images 8 to 15.

    python tests/benchmarks/grad_inversion.py

found (166 CPU seconds; gain is over the arm above, with its standard error over the four batches):

    network   arm            PSNR dB           gain   CPU s
    sigmoid   mean image       12.92
    sigmoid   gradient         31.24                    1.2
    sigmoid   + TV             22.92  -8.32 +- 2.82     1.2
    sigmoid   + running        23.63  +0.71 +- 1.28     1.3
    sigmoid   + exact          29.62  +5.99 +- 3.22     1.3
    sigmoid   + seeds          29.37  -0.25 +- 0.17     5.3
    sigmoid   + lazy           29.96  +0.59 +- 0.33     4.8
    sigmoid   + registered     29.96  +0.00 +- 0.00     5.0
    relu      mean image       12.92
    relu      gradient         13.17                    1.2
    relu      + TV             19.76  +6.59 +- 0.55     1.2
    relu      + running        19.04  -0.72 +- 0.67     1.4
    relu      + exact          22.96  +3.91 +- 1.05     1.5
    relu      + seeds          23.57  +0.62 +- 0.24     5.4
    relu      + lazy           22.92  -0.65 +- 0.14     5.2
    relu      + registered     22.92  +0.00 +- 0.00     5.3

So the exact statistics are worth decibels, as in the paper, and the running ones nothing here; the group adds nothing at this
size. Registration finds no shift to undo: at 16 pixels the seeds lie upon each other, unlike objects in 224 x 224 pixels.
The ReLU network is the one to look at; gradients of the sigmoid network determine the batch, and total variation only blurs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fedleak
from fedleak.data.federated import FederatedData, federated_data
from fedleak.evaluation.images import pair
from fedleak.modalities.image.metrics import psnr
from fedleak.models import build_model
from fedleak.observation import Observation, observe
from fedleak.scenario.schema import Data, Model
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

GRANT = frozenset({Knowledge.LOCAL_TRAINING, Knowledge.LABELS})
CHANNELS = 12
PUBLIC_PASSES = 40
"""Forward passes over images that are not attacked, which fill the running statistics."""
CLAIM = """the paper, ImageNet, ResNet-50, B = 8: gradient alone 10.75 dB; with TV, norm and BatchNorm's exact statistics 12.06;
with the lazy group 12.52; with the registered group 12.93; best with the exact statistics, weaker with the running ones"""

ONE = {"seeds": 1, "statistics": "none"}
EXACT = {"statistics": "best"}
ARMS: dict[str, dict[str, Any]] = {
    "gradient": {**ONE, "tv": 0.0, "l2": 0.0, "noise": 0.0},
    "+ TV": ONE,
    "+ running": {"seeds": 1, "statistics": "running"},
    "+ exact": {"seeds": 1, **EXACT},
    "+ seeds": {**EXACT, "group": 0.0},  # the best of several by own loss, without a pull: as dear as the next two
    "+ lazy": {**EXACT, "reach": 0},
    "+ registered": EXACT,
}
"""What each arm sets; the others' terms are the attack's defaults. Each has the terms of the one before it."""


def plain(activation: type[nn.Module], pixels: int, classes: int) -> nn.Sequential:
    """Return three 5 x 5 convolutions with BatchNorm, the first with stride 2, and a linear layer."""
    layers: list[nn.Module] = []
    for number in range(3):
        layers.append(nn.Conv2d(CHANNELS if number else 3, CHANNELS, 5, 1 if number else 2, padding=2))
        layers += [nn.BatchNorm2d(CHANNELS), activation()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(CHANNELS * (pixels // 2) ** 2, classes))


def network(name: str, data: FederatedData, seed: int) -> nn.Module:
    """Return a fresh network in train mode: a small one with BatchNorm, or one of the zoo."""
    small = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}
    if name not in small:
        return build_model(Model(name=name), data.input, seed)
    with Seed(seed).derive("network").isolated():
        return plain(small[name], data.input.shape[-1], data.input.num_classes)


def seen_in_training(model: nn.Module, data: FederatedData, indices: list[int]) -> Observation:
    """Return what a server sees of one FedSGD step in train mode, with the buffers that the client sent back."""
    public = data.images([index for index in range(len(data.source.train)) if index not in indices])
    with torch.no_grad():
        for _ in range(PUBLIC_PASSES):
            model(data.input.normalize(public))
    sent = {name: value.clone() for name, value in model.named_buffers()}
    seen = observe(model, data.images(indices), data.labels(indices), input=data.input, grant=GRANT)
    return replace(seen, buffers=sent, received_buffers=seen.buffers)


def quality(found: Tensor, truth: Tensor) -> float:
    """Return the mean PSNR in dB, each image with its best match."""
    order = [index for index in pair(found, truth) if index is not None]
    return float(psnr(found[order], truth).mean())


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all arms on all batches; print and save each line as it is done."""
    data = federated_data(Data(source="samples", partition="order", normalize=True, image_size=options.pixels), 1, 0)
    rows: list[dict[str, Any]] = []
    firsts = range(options.first, len(data.source.train) - options.batch + 1, options.batch)
    for name in options.networks:
        for number, first in enumerate(list(firsts)[: options.batches]):
            indices = list(range(first, first + options.batch))
            model = network(name, data, options.seed + number)
            seen, truth = seen_in_training(model, data, indices), data.images(indices)
            found = {"mean image": (quality(data.mean_image()[None].expand_as(truth), truth), 0.0)}
            for arm in options.arms:
                begun = time.process_time()
                parameters = {"seeds": options.seeds, **ARMS[arm]}
                attack = fedleak.attack("grad-inversion", labels="given", iterations=options.iterations, **parameters)
                [result] = attack([seen], model, seed=options.seed + number)
                level = quality(result.images, truth) if result.images is not None else 0.0
                found[arm] = level, time.process_time() - begun
            rows += [
                {"network": name, "images": indices, "arm": arm, "psnr": level, "cpu_seconds": seconds}
                for arm, (level, seconds) in found.items()
            ]
            line = "  ".join(f"{arm} {level:.2f}" for arm, (level, _) in found.items())
            print(f"{name} images {indices}: {line}", flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps({"options": vars(options), "rows": rows}, default=str, indent=1))
    return rows


def summarise(rows: list[dict[str, Any]]) -> None:
    """Print one line for each network and arm; gain is the mean difference from the arm before it, with its standard error."""
    print(f"\n{'network':10s}{'arm':14s}{'batches':>8s}{'PSNR dB':>9s}{'gain':>15s}{'CPU s':>8s}")
    for name in dict.fromkeys(row["network"] for row in rows):
        before: list[float] | None = None
        for arm in dict.fromkeys(row["arm"] for row in rows):
            mine = [row for row in rows if (row["network"], row["arm"]) == (name, arm)]
            levels = [row["psnr"] for row in mine]
            gain = ""
            if before is not None:
                gains = [a - b for a, b in zip(levels, before, strict=True)]
                error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
                gain = f"{statistics.mean(gains):+.2f} +- {error:.2f}"
            seconds = statistics.mean(row["cpu_seconds"] for row in mine)
            print(f"{name:10s}{arm:14s}{len(mine):8d}{statistics.mean(levels):9.2f}{gain:>15s}{seconds:8.1f}")
            before = None if arm == "mean image" else levels
    print(CLAIM)


def main() -> None:
    """Read the options, compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["sigmoid", "relu"], help="sigmoid, relu, or of the zoo")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default all")
    parser.add_argument("--pixels", type=int, default=16, help="side of the images (default 16)")
    parser.add_argument("--batch", type=int, default=2, help="images in a batch (default 2)")
    parser.add_argument("--batches", type=int, default=4, help="of each network, each with a network of its own (default 4)")
    parser.add_argument("--first", type=int, default=8, help="first image (default 8: the weights were chosen on those before)")
    parser.add_argument("--seeds", type=int, default=4, help="in the group (default 4)")
    parser.add_argument("--iterations", type=int, default=300, help="default 300")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows here, after each batch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.process_time()
    summarise(compare(options))
    print(f"{time.process_time() - begun:.0f} CPU seconds")


if __name__ == "__main__":
    main()
