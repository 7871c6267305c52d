"""Measure the attacks that read a linear first layer: ``analytic``, ``spear``, ``cocktail-party``, and ``exact``, which chooses.

MLPs of two hidden layers (the first of the width given, then 256 units, ReLU) at PyTorch's initialisation, 32 x 32 pixels, one
thread, nothing but the batch size granted; ``exact`` tries ``closed-form`` as well. Batches are drawn at random from
CIFAR-10's training images (``--data``) or foolbox's 20 samples, with a network anew for each. PSNR in dB, paired by
assignment; an image counts as exact above 100 dB. Baseline: the mean image of CIFAR-10.

    python tests/benchmarks/linear_first_layer.py --data $FEDLEAK_DATA/cifar10

With ``--batches 3 --seconds 10``: mean PSNR, lowest in brackets, and exact images; CPU seconds of a batch from 0.1 (B=1) to 4.4:

    B    width   analytic             spear                  cocktail-party   exact                   mean image
    1      256   200        3 of 3    200          3 of 3    200              200          3 of 3     12.1
    4      256   138 (8)    9 of 12   176 (158)   12 of 12   36.7 (28.0)      171 (146)   12 of 12    12.1
    8      256    74 (8)   10 of 24   163 (151)   24 of 24   30.4 (19.5)      153 (145)   24 of 24    12.2
    16     256    44 (7)   11 of 48   152 (144)   48 of 48   25.5 (13.5)      115 (16)    33 of 48    12.6
    16     512    74 (7)   21 of 48   155 (146)   48 of 48   25.5 (13.5)      155 (146)   48 of 48    12.6
    32    1024    38 (6)   19 of 96   153 (147)   96 of 96   22.3 (8.9)       153 (147)   96 of 96    12.6

``spear`` takes 0.5 s for B=16 at width 256 and 2.2 s for B=32; at B=64 it was not run to its end. ``exact`` leaves each attack
a part of the budget only, and so misses one batch at B=16.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from torch import Tensor

from fedleak.attacks.base import attacks
from fedleak.data.federated import federated_data
from fedleak.data.samples import CIFAR10_MEAN
from fedleak.evaluation.images import pair
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import psnr
from fedleak.models import build_model
from fedleak.observation import observe
from fedleak.scenario.schema import Data, Model
from fedleak.seeding import Seed

CIFAR = InputSpec((3, 32, 32), 10)
CASES = ((1, 256), (4, 256), (8, 256), (16, 256), (16, 512), (32, 1024), (64, 1024))
ARMS = ("analytic", "spear", "cocktail-party", "exact")


def measure(name: str, images: Tensor, labels: Tensor, width: int, seed: int, seconds: float) -> tuple[list[float], float, str]:
    """Return PSNR in dB of each image, CPU seconds, and how it came about or why not."""
    model = build_model(Model(name="mlp", hidden=[width, 256]), CIFAR, seed=seed).eval()
    observation = observe(model, images, labels, input=CIFAR)
    [result] = attacks.get(name)(budget_seconds=seconds)([observation], model, seed=seed)
    if result.images is None:
        return [], result.cpu_seconds, f"failed: {result.error}"
    return psnr(result.images[pair(result.images, images)], images).tolist(), result.cpu_seconds, result.method


def main() -> None:
    """Print one line for each batch size, width and attack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="CIFAR-10 as Parquet files; by default foolbox's 20 samples")
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="CPU seconds for each batch and attack (default 20)")
    parser.add_argument("--attacks", nargs="+", default=list(ARMS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = Data(source="cifar10", path=options.data) if options.data else Data(source="samples")
    data = federated_data(source, 1, 0)
    total = len(data.shard(0))
    for size, width in CASES:
        if size > total:
            continue
        drawn = [
            Seed(0).derive("batch", size, number).numpy().permutation(total)[:size].tolist() for number in range(options.batches)
        ]
        batches = [(data.images(chosen), data.labels(chosen)) for chosen in drawn]
        flat = torch.tensor(CIFAR10_MEAN).view(1, 3, 1, 1)
        mean_image = statistics.mean(float(psnr(flat.expand_as(images), images).mean()) for images, _ in batches)
        for name in options.attacks:
            found = [measure(name, *batch, width, number, options.seconds) for number, batch in enumerate(batches)]
            values = [value for quality, _, _ in found for value in quality]
            spent = statistics.median(seconds for _, seconds, _ in found)
            line = f"B={size:<2d} width {width:<4d} {name:15s}"
            if values:
                exact = sum(value > 100 for value in values)
                line += f" mean {statistics.mean(values):6.1f} min {min(values):6.1f} dB, exact {exact} of {size * len(found)}"
            failed = [said for quality, _, said in found if not quality]
            line += f", {len(failed)} of {len(found)} failed" if failed else ""
            how = sorted({said.split(":")[0] for quality, _, said in found if quality and said})
            print(
                f"{line}, CPU s {spent:.2f}, mean image {mean_image:.1f} {', '.join(how) if name == 'exact' else ''}", flush=True
            )


if __name__ == "__main__":
    main()
