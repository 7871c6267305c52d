"""Compare the attack ``natural`` with others at equal CPU seconds: batches of the sample images, one thread.

All arms attack the same network, images and update, with the labels given. Each batch is attacked for several inits: a
freshly drawn network and a fresh start of the attack. CPU seconds are those of the whole attack's call. Inverting
Gradients lowers its learning rate at parts of its iterations, so these are chosen beforehand, by timing a few, to fill
the seconds. Baselines: the mean image of CIFAR-10, and each image's own mean colour, which no attacker knows.

    python tests/benchmarks/natural.py --normalize --json natural.json

LeNet-sigmoid, 5 batches x 3 inits; PSNR in dB with 1.96 standard errors over the batches, SSIM; one thread of a busy
two-core machine, so that CPU seconds bought fewer iterations than they can. FedAvg: 4 steps on 1 image each, learning
rate 0.001. Some defaults of ``natural`` were chosen on images 0 to 7.

    case (CPU s)    natural             dlg                 inverting-gradients  mean image  own mean colour
    b4      (4)     29.6 +- 0.7  .94    27.5 +- 2.0  .91    14.3 +- 0.9  .30     12.4        13.5
    b8      (5)     22.4 +- 1.9  .78    20.3 +- 1.3  .71    13.5 +- 0.5  .21     12.3        13.3
    fedavg (10)     30.0 +- 0.5  .94    23.6 +- 1.2  .82    14.8 +- 1.0  .33     12.4        13.5

``natural`` alone: without ``--normalize`` (pixels as they are, less contrast) b4 27.6 +- 1.9, b8 22.6 +- 1.3, fedavg
27.3 +- 2.7. With ``--normalize --inits 1``: fedavg2 30.8 +- 0.6, fedavg at learning rate 0.01 only 17.6 +- 3.6: there the
drift between the local steps is as large as what tells images apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import fedleak
from fedleak.data.federated import FederatedData, federated_data
from fedleak.evaluation.images import pair
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import psnr, ssim
from fedleak.models import build_model
from fedleak.observation import LocalTraining, Observation, observe
from fedleak.scenario.schema import Data, Model
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

GRANT = frozenset({Knowledge.LOCAL_TRAINING, Knowledge.LABELS})
PACED = {"inverting-gradients", "surrogate-model"}
"""Attacks whose schedule is in iterations."""
UNBOUNDED = 10**6


class Case(NamedTuple):
    """A kind of update: images behind it, local steps (0 for a gradient), and CPU seconds for each attack."""

    images: int
    steps: int
    seconds: float


CASES = {
    "b1": Case(1, 0, 4.0),
    "b4": Case(4, 0, 4.0),
    "b8": Case(8, 0, 5.0),
    "fedavg": Case(4, 4, 10.0),
    "fedavg2": Case(4, 2, 10.0),
}


def batches(size: int, count: int, total: int) -> list[list[int]]:
    """Return image indices: all images in order first, then random batches without repeats."""
    ordered = [list(range(first, first + size)) for first in range(0, total - size + 1, size)]
    drawn = [Seed(0).derive("batch", size, n).numpy().permutation(total)[:size].tolist() for n in range(count)]
    return (ordered + drawn)[:count]


def local_training(model: nn.Module, images: Tensor, labels: Tensor, input: InputSpec, steps: int, rate: float) -> Observation:
    """Return what a server sees of ``steps`` local steps of plain SGD, each on its own part of the images."""
    seen = observe(model, images, labels, input=input, grant=GRANT)
    weights = {name: value.clone().requires_grad_() for name, value in seen.parameters.items()}
    size = len(images) // steps
    for part, answer in zip(images.split(size), labels.split(size), strict=True):
        loss = functional.cross_entropy(torch.func.functional_call(model, weights, (input.normalize(part),)), answer)
        gradient = torch.autograd.grad(loss, list(weights.values()))
        stepped = zip(weights.items(), gradient, strict=True)
        weights = {name: (value - rate * g).detach().requires_grad_() for (name, value), g in stepped}
    local = LocalTraining(len(images), size, steps=steps, learning_rate=rate, mode="eval")
    return replace(seen, kind="weights", update={name: value.detach() for name, value in weights.items()}, local=local)


def iterations(name: str, observation: Observation, model: nn.Module, seconds: float) -> int:
    """Return how many iterations fill the seconds, for attacks with a schedule in iterations."""
    if name not in PACED:
        return UNBOUNDED
    few = 40
    begun = time.process_time()
    fedleak.attack(name, labels="given", iterations=few)([observation], model)
    return round(few * seconds / (time.process_time() - begun))


def scores(found: Tensor, truth: Tensor) -> dict[str, float]:
    """Return mean PSNR in dB and mean SSIM over the batch, each image with its best match."""
    order = [index for index in pair(found, truth) if index is not None]
    found = found[order]
    return {"psnr": float(psnr(found, truth).mean()), "ssim": float(ssim(found, truth).mean())}


def attack(name: str, observation: Observation, model: nn.Module, truth: Tensor, seconds: float, seed: int) -> dict[str, Any]:
    """Run one arm on one update."""
    limit = iterations(name, observation, model, seconds)
    run = fedleak.attack(name, labels="given", restarts=1, iterations=limit, patience=UNBOUNDED, budget_seconds=seconds)
    [result] = run([observation], model, seed=seed)
    if result.images is None:
        return {"psnr": 0.0, "ssim": 0.0, "cpu_seconds": result.cpu_seconds, "stop": result.error}
    return {**scores(result.images, truth), "cpu_seconds": result.cpu_seconds, "stop": result.stop_reason}


def compare(options: argparse.Namespace, data: FederatedData) -> list[dict[str, Any]]:
    """Run all arms on all updates; print and save each line as it is done."""
    rows: list[dict[str, Any]] = []
    for name in options.cases:
        case = CASES[name]
        for number, indices in enumerate(batches(case.images, options.batches, len(data.source.train))):
            truth, labels = data.images(indices), data.labels(indices)
            flat = {
                "mean image": data.mean_image()[None].expand_as(truth),
                "own mean colour": truth.mean((2, 3), True).expand_as(truth),
            }
            for init in range(options.inits):
                model = build_model(Model(name=options.network), data.input, 100 * number + init).eval()
                if case.steps:
                    seen = local_training(model, truth, labels, data.input, case.steps, options.learning_rate)
                else:
                    seen = observe(model, truth, labels, input=data.input, grant=GRANT)
                results = {arm: attack(arm, seen, model, truth, options.seconds or case.seconds, init) for arm in options.attacks}
                results |= {arm: {**scores(image, truth), "cpu_seconds": 0.0, "stop": ""} for arm, image in flat.items()}
                for arm, row in results.items():
                    rows.append({"case": name, "images": indices, "init": init, "arm": arm, **row})
                found = "  ".join(f"{arm} {row['psnr']:.2f}" for arm, row in results.items())
                print(f"{name} images {indices} init {init}: {found}", flush=True)
                if options.json is not None:
                    options.json.write_text(json.dumps({"options": vars(options), "rows": rows}, default=str, indent=1))
    return rows


def summarise(rows: list[dict[str, Any]]) -> None:
    """Print one line for each case and arm; the interval is 1.96 standard errors of the batches' means."""
    print(f"\n{'case':10s}{'arm':22s}{'updates':>8s}{'PSNR dB':>16s}{'min':>7s}{'max':>7s}{'SSIM':>7s}{'CPU s':>8s}")
    for case, arm in dict.fromkeys((row["case"], row["arm"]) for row in rows):
        mine = [row for row in rows if (row["case"], row["arm"]) == (case, arm)]
        quality = [row["psnr"] for row in mine]
        groups: dict[str, list[float]] = {}
        for row in mine:
            groups.setdefault(str(row["images"]), []).append(row["psnr"])
        means = [statistics.mean(group) for group in groups.values()]
        interval = 1.96 * statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else float("nan")
        similar, seconds = (statistics.mean(row[key] for row in mine) for key in ("ssim", "cpu_seconds"))
        print(
            f"{case:10s}{arm:22s}{len(mine):8d}{statistics.mean(quality):9.2f} +-{interval:4.1f}{min(quality):7.1f}"
            f"{max(quality):7.1f}{similar:7.2f}{seconds:8.2f}"
        )


def main() -> None:
    """Read the options, compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["b4", "b8", "fedavg"], help="default b4 b8 fedavg")
    parser.add_argument("--attacks", nargs="+", default=["natural", "dlg", "inverting-gradients"], metavar="NAME")
    parser.add_argument("--batches", type=int, default=5, help="batches of images for each case (default 5)")
    parser.add_argument("--inits", type=int, default=3, help="networks and starts for each batch (default 3)")
    parser.add_argument("--seconds", type=float, help="CPU seconds for each attack; by default the case's own")
    parser.add_argument("--network", default="lenet", help="of fedleak's zoo (default lenet)")
    parser.add_argument("--normalize", action="store_true", help="give the network standardised channels, as breaching does")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of FedAvg's local steps (default 0.001)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows here, after each update")
    options = parser.parse_args()
    torch.set_num_threads(1)
    summarise(compare(options, federated_data(Data(source="samples", partition="order", normalize=options.normalize), 1, 0)))


if __name__ == "__main__":
    main()
