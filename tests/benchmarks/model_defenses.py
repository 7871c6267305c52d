"""Measure defenses on the model and on representations against an attacker who does not know them, and one who does.

foolbox's CIFAR-10 samples at 16 x 16 pixels, a freshly drawn LeNet for each, labels given, one gradient at initialisation; the
base is ``natural`` (``inverting-gradients`` with ``--base``), and the adaptive attacker is the same base through its counters.

    python tests/benchmarks/model_defenses.py
    python tests/benchmarks/model_defenses.py --iterations 25 --inits 1 --only grad-defense outpost

found by the second command, PSNR in dB, mean and standard error over images 0 to 3, a network for each:

    defense                    B      no defense            base        adaptive  mean image
    grad-defense scale 0.01    1     62.0 +- 3.0     12.5 +- 0.6     25.3 +- 2.2        12.0
    grad-defense scale 0.1     1     62.0 +- 3.0      5.7 +- 0.2     54.1 +- 7.7        12.0
    grad-defense scale 0.01    4     37.0 +- 1.5      7.4 +- 0.1     18.8 +- 0.8        12.9

The louder the noise of GradDefense, the better the slices without it are told apart. What was found for dropout, PRECODE and
Soteria is in scenarios/claims/dropout.toml and scenarios/claims/representation-defenses.toml.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

import fedleak
from fedleak.client.training import gradient_of
from fedleak.data.federated import FederatedData, federated_data
from fedleak.defenses.chain import DefenseChain, defended_model
from fedleak.evaluation.images import pair
from fedleak.modalities.image.metrics import psnr
from fedleak.observation import LocalTraining, Observation
from fedleak.scenario.schema import Data, parse_scenario
from fedleak.seeding import Seed

ROWS: list[tuple[dict[str, Any], dict[str, str], int]] = [
    ({"name": "dropout", "p": 0.2}, {}, 1),
    ({"name": "dropout", "p": 0.5}, {}, 1),
    ({"name": "dropout", "p": 0.5}, {"dropout": "optimise"}, 1),
    ({"name": "dropout", "p": 0.5}, {"dropout": "leave-out"}, 1),
    ({"name": "dropout", "p": 0.5}, {}, 4),
    ({"name": "dropout", "p": 0.5}, {"dropout": "optimise"}, 4),
    ({"name": "dropout", "p": 0.2, "where": "everywhere"}, {}, 1),
    ({"name": "dropout", "p": 0.5, "where": "everywhere"}, {}, 1),
    ({"name": "precode", "size": 64}, {}, 1),
    ({"name": "precode", "size": 256}, {}, 1),
    ({"name": "precode", "size": 256}, {"precode": "leave-out"}, 1),
    ({"name": "precode", "size": 256}, {}, 4),
    ({"name": "soteria", "pruning_rate": 0.6}, {}, 1),
    ({"name": "soteria", "pruning_rate": 0.9}, {}, 1),
    ({"name": "soteria", "pruning_rate": 0.6}, {"soteria": "leave-out"}, 1),
    ({"name": "soteria", "pruning_rate": 0.6}, {}, 4),
    ({"name": "grad-defense", "scale": 0.01}, {}, 1),
    ({"name": "grad-defense", "scale": 0.1}, {}, 1),
    ({"name": "grad-defense", "scale": 0.01}, {}, 4),
    ({"name": "outpost", "noise_base": 0.1}, {}, 1),
    ({"name": "outpost", "noise_base": 0.8}, {}, 1),
    ({"name": "outpost", "noise_base": 0.1}, {}, 4),
]
"""Defense, the counter's way, and images in the batch."""


def observed(data: FederatedData, chain: list[dict[str, Any]], indices: list[int], init: int) -> tuple[nn.Module, Observation]:
    """Return the server's network, and what it sees of one gradient of a client with the defenses."""
    scenario = parse_scenario({"name": "benchmark", "seed": init, "defenses": chain})
    model, client = (defended_model(scenario, data.input).eval() for _ in range(2))
    at = DefenseChain(scenario.defenses, data.input, Seed(1000 + init)).at(1, 0)
    at.on_model(client)
    images, labels = at.on_batch(data.images(indices), data.labels(indices), 0)
    gradient = gradient_of(client, data.input.normalize(images), labels, at.on_loss)[1]
    update = at.on_update(at.on_gradient(gradient, client, images, labels, 0))
    return model, Observation(
        kind="gradient",
        parameters={name: value.detach().clone() for name, value in model.named_parameters()},
        update=update,
        input=data.input,
        local=LocalTraining(len(indices), len(indices), mode="eval"),
        labels=tuple(sorted(data.labels(indices).tolist())),
        defenses=tuple(spec.model_dump() for spec in scenario.defenses),
    )


def quality(found: Tensor | None, truth: Tensor) -> float:
    """Return the mean PSNR in dB, each image with its best match."""
    if found is None:
        return float("nan")
    return float(psnr(found[[place for place in pair(found, truth) if place is not None]], truth).mean())


def main() -> None:
    """Read the options, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="natural", help="attack by gradient matching (default natural)")
    parser.add_argument("--iterations", type=int, default=40, help="of each attack (default 40)")
    parser.add_argument("--updates", type=int, default=4, help="batches of images for each row (default 4)")
    parser.add_argument("--inits", type=int, default=2, help="networks for each batch (default 2)")
    parser.add_argument("--size", type=int, default=16, help="pixels of an image's side (default 16)")
    parser.add_argument("--only", nargs="+", help="names of defenses (default all)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = federated_data(Data(source="samples", partition="order", image_size=options.size), 1, 0)
    mean, begun = data.mean_image()[None], time.process_time()
    controls: dict[tuple[int, ...], float] = {}
    print(f"{'defense':44s}{'way':>11s}{'B':>3s}{'no defense':>16s}{'base':>16s}{'adaptive':>16s}{'mean image':>12s}")
    for defense, ways, size in ROWS:
        if options.only and defense["name"] not in options.only:
            continue
        arms: dict[str, list[float]] = {"none": [], "base": [], "adaptive": [], "mean": []}
        for number in range(options.updates):
            indices = list(range(number * size, (number + 1) * size))
            truth = data.images(indices)
            for init in range(options.inits):
                run = {"labels": "given", "iterations": options.iterations}
                seed = 10 * number + init
                if (size, number, init) not in controls:
                    model, seen = observed(data, [], indices, seed)
                    [result] = fedleak.attack(options.base, **run)([seen], model, seed=seed)
                    controls[size, number, init] = quality(result.images, truth)
                model, seen = observed(data, [defense], indices, seed)
                [result] = fedleak.attack(options.base, **run)([seen], model, seed=seed)
                arms["base"].append(quality(result.images, truth))
                [result] = fedleak.attack("adaptive", base=options.base, ways=ways, **run)([seen], model, seed=seed)
                arms["adaptive"].append(quality(result.images, truth))
                arms["none"].append(controls[size, number, init])
                arms["mean"].append(quality(mean.expand_as(truth), truth))
        text = ", ".join(f"{key} {value}" for key, value in defense.items() if key != "name")
        cells = [f"{statistics.mean(v):.1f} +- {statistics.stdev(v) / len(v) ** 0.5:.1f}" for v in list(arms.values())[:3]]
        print(
            f"{defense['name'] + ' ' + text:44s}{next(iter(ways.values()), ''):>11s}{size:3d}"
            + "".join(f"{cell:>16s}" for cell in cells)
            + f"{statistics.mean(arms['mean']):12.1f}",
            flush=True,
        )
    print(f"{time.process_time() - begun:.0f} CPU seconds")


if __name__ == "__main__":
    main()
