"""Attack defended batches with and without knowledge of the defense: mixup, InstaHide, ATS and OASIS at initialisation.

All arms attack the same network, images and labels, which are given; each gets the same CPU seconds. Images are foolbox's samples
with CIFAR-10's normalisation. "+-" is the standard error over updates (batches x networks).

    python tests/benchmarks/onbatch.py --seconds 1 [--only oasis --images 2]

PSNR in dB. "told" is what someone reaches who is told what the update does not hold: which side is up (oasis), or the sign of
each pixel's input (instahide). A case has 2 updates, but where 4 or 1 is said, each with a network of its own: few.

    defense                  B  base attack  undefended    base          adaptive      adaptive told  mean image
    mixup a=0.2              4  natural      27.2 +- 0.6   21.4 +- 5.0   21.5 +- 2.8                  12.6 +- 0.8
    mixup a=1                4  natural      26.8 +- 0.4   16.9 +- 0.6   18.3 +- 0.1                  12.6 +- 0.8
    mixup a=8                4  natural      26.4 +- 0.2   17.3 +- 0.9   18.9 +- 0.6                  12.6 +- 0.8
    mixup a=1, --seconds 4   4  natural      32.0          16.1          26.3          (1 update)     11.8
    instahide k=4, no flips  4  natural      27.0 +- 0.5   15.9 +- 1.7   17.8 +- 0.4                  12.6 +- 0.8
    instahide flips alone    1  natural      35.6 +- 0.8   10.3 +- 0.9   11.2 +- 1.2   14.0 +- 1.0    11.8 +- 1.0  (4 updates)
    instahide k=2            2  natural      32.8 +- 0.6   10.4 +- 0.2   11.6 +- 0.4   12.8 +- 0.1    11.8 +- 0.2
    instahide k=4            4  natural      27.5 +- 0.4   11.8 +- 0.8   12.6 +- 0.7   13.2 +- 0.9    12.6 +- 0.8
    ats 3-1-7                1  natural      35.4 +- 0.9    7.2 +- 0.5   17.2 +- 1.4                  11.8 +- 1.0  (4 updates)
    ats 43-18-18             1  natural      36.7 +- 0.6   10.4 +- 0.0   21.4 +- 2.0                  11.9 +- 2.5
    ats hybrid               1  natural      37.9 +- 0.7    6.7 +- 0.8   17.0 +- 3.4                  11.9 +- 2.5
    oasis flips              1  natural      34.9 +- 0.5   15.0 +- 2.1   38.1 +- 1.0   38.1 +- 1.0    11.9 +- 2.5
    oasis major              1  natural      35.4 +- 0.5   12.3 +- 2.7   25.1 +- 13    37.5 +- 0.6    11.9 +- 2.5
    oasis major+shear        1  natural      35.2 +- 0.4   13.2 +- 2.4   34.2 +- 1.7   34.2 +- 1.7    11.9 +- 2.5
    oasis major+shear        4  natural      27.1 +- 0.9   14.1 +- 1.6   21.6 +- 3.1   21.6 +- 3.1    12.6 +- 0.8
    oasis major, relu        1  inv.grad.    12.0 +- 2.2   11.5 +- 2.1   12.2 +- 2.2   (undefended fails too: says nothing)
    oasis major, mlp         1  analytic     159           fails         157                          11.8 +- 1.0  (4 updates)
    oasis major, mlp         4  analytic     158           fails         15.1 +- 1.3                  12.6 +- 0.8
    oasis major, mlp         4  spear        158           fails         156                          12.6 +- 0.8

Signs are what holds: mixing alone, ATS and OASIS do not, beyond what ATS pushes out of the picture and the side that is up. For
``analytic`` and ``spear`` "adaptive" is the attack told that the batch is four times as large. Not run: ATS at B = 4, on ReLU.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fedleak
from fedleak.data.federated import FederatedData, federated_data
from fedleak.defenses.base import Situation, defenses
from fedleak.evaluation.images import pair
from fedleak.modalities.image.metrics import psnr
from fedleak.models import build_model
from fedleak.observation import Observation, observe
from fedleak.scenario.schema import Data, Model
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

MODELS: dict[str, dict[str, Any]] = {
    "lenet": {"name": "lenet"},
    "lenet-relu": {"name": "lenet", "activation": "relu"},
    "mlp": {"name": "mlp"},
}


class Case(NamedTuple):
    """One defense at one strength, and what it is attacked with."""

    name: str
    images: int
    defense: dict[str, Any]
    network: str = "lenet"
    base: str = "natural"


CASES = [
    Case("mixup a=0.2", 4, {"name": "mixup", "alpha": 0.2}),
    Case("mixup a=1", 4, {"name": "mixup", "alpha": 1.0}),
    Case("mixup a=8", 4, {"name": "mixup", "alpha": 8.0}),
    Case("instahide k=4, no flips", 4, {"name": "instahide", "k": 4, "flip": 0.0}),
    Case("instahide flips alone", 1, {"name": "instahide", "k": 1}),
    Case("instahide k=2", 2, {"name": "instahide", "k": 2}),
    Case("instahide k=4", 4, {"name": "instahide", "k": 4}),
    Case("ats 3-1-7", 1, {"name": "ats", "policy": "3-1-7"}),
    Case("ats 43-18-18", 1, {"name": "ats", "policy": "43-18-18"}),
    Case("ats hybrid", 1, {"name": "ats", "policy": "hybrid"}),
    Case("ats hybrid", 4, {"name": "ats", "policy": "hybrid"}),
    Case("ats hybrid, relu", 1, {"name": "ats", "policy": "hybrid"}, "lenet-relu", "inverting-gradients"),
    Case("oasis flips", 1, {"name": "oasis", "transforms": "flips"}),
    Case("oasis major", 1, {"name": "oasis", "transforms": "major-rotation"}),
    Case("oasis major+shear", 1, {"name": "oasis", "transforms": "major-rotation+shear"}),
    Case("oasis major+shear", 4, {"name": "oasis", "transforms": "major-rotation+shear"}),
    Case("oasis major, relu", 1, {"name": "oasis", "transforms": "major-rotation"}, "lenet-relu", "inverting-gradients"),
    Case("oasis major, mlp", 1, {"name": "oasis", "transforms": "major-rotation"}, "mlp", "analytic"),
    Case("oasis major, mlp", 4, {"name": "oasis", "transforms": "major-rotation"}, "mlp", "analytic"),
    Case("oasis major, mlp", 4, {"name": "oasis", "transforms": "major-rotation"}, "mlp", "spear"),
]


def update(model: nn.Module, data: FederatedData, indices: list[int], defense: dict[str, Any] | None, seed: int) -> Observation:
    """Return what a server sees of a batch that ``defense`` has changed."""
    images, labels = data.images(indices), data.labels(indices)
    trained, targets = images, labels
    if defense is not None:
        parameters = {key: value for key, value in defense.items() if key != "name"}
        situation = Situation(Seed(seed), 1, 0, data.input)
        trained, targets = defenses.get(defense["name"])(**parameters).on_batch(images, labels, situation)
    seen = observe(model, trained, targets, input=data.input, grant=frozenset({Knowledge.LOCAL_TRAINING}))
    assert seen.local is not None
    local = replace(seen.local, num_examples=len(indices), batch_size=len(indices))
    known = () if defense is None else (defense,)
    return replace(seen, local=local, labels=tuple(sorted(labels.tolist())), defenses=known)


def with_copies(seen: Observation) -> Observation:
    """Return the observation of OASIS's major rotations as one of four times as many images, for attacks without counters."""
    assert seen.local is not None
    count = 4 * seen.local.num_examples
    return replace(seen, local=replace(seen.local, num_examples=count, batch_size=count))


def turned(images: Tensor, data: FederatedData) -> list[Tensor]:
    """Return the images in four orientations: OASIS's rotations are the same for each of them."""
    return [images.rot90(turns, (2, 3)) for turns in range(4)]


def signed(images: Tensor, data: FederatedData, truth: Tensor) -> Tensor:
    """Return the images with the signs of model inputs that suit the truth best, one for all images at each pixel."""
    found, true = data.input.normalize(images), data.input.normalize(truth)
    return data.input.denormalize((found * true).sum(0, keepdim=True).sign() * found)


def quality(images: Tensor | None, truth: Tensor) -> float:
    """Return the mean PSNR in dB over the batch, each image with its best match."""
    if images is None:
        return float("nan")
    usable = images.clamp(0, 1)
    return float(psnr(usable[[index for index in pair(usable, truth) if index is not None]], truth).mean())


def oracle(case: Case, images: Tensor | None, truth: Tensor, data: FederatedData) -> float | None:
    """Return the PSNR that someone would reach who is told what the update does not hold: orientations, or signs."""
    if images is None or case.defense["name"] not in ("oasis", "instahide"):
        return None
    matched = images[[index for index in pair(images.clamp(0, 1), truth) if index is not None]]
    if case.defense["name"] == "instahide":
        return float(psnr(signed(matched, data, truth).clamp(0, 1), truth).mean())
    found = torch.cat(turned(images.clamp(0, 1), data))
    return float(psnr(found[[index for index in pair(found, truth) if index is not None]], truth).mean())


def attack(name: str, seen: Observation, model: nn.Module, seconds: float, **parameters: Any) -> Tensor | None:
    """Run one arm."""
    if name in ("analytic", "spear"):
        return fedleak.attack(name)([seen], model, seed=0)[0].images
    if "inverting-gradients" in (name, parameters.get("base")):
        parameters |= {"iterations": round(60 * seconds)}
    run = fedleak.attack(name, labels="given", budget_seconds=seconds, **parameters)
    return run([seen], model, seed=0)[0].images


def arms(case: Case, seconds: float) -> dict[str, Callable[[Observation, Observation, nn.Module], Tensor | None]]:
    """Return what is compared: each is given the plain and the defended update."""
    found: dict[str, Callable[[Observation, Observation, nn.Module], Tensor | None]] = {
        "undefended": lambda plain, _, model: attack(case.base, plain, model, seconds),
        "base": lambda _, seen, model: attack(case.base, seen, model, seconds),
    }
    if case.base in ("analytic", "spear"):
        found["adaptive"] = lambda _, seen, model: attack(case.base, with_copies(seen), model, seconds)
    else:
        found["adaptive"] = lambda _, seen, model: attack("adaptive", seen, model, seconds, base=case.base)
    return found


def compare(options: argparse.Namespace, data: FederatedData) -> list[dict[str, Any]]:
    """Run all arms on all updates; print and save each line as it is done."""
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if options.only and options.only not in case.name:
            continue
        for number in range(max(2, -(-options.images // case.images))):
            indices = [(case.images * number + image) % len(data.source.train) for image in range(case.images)]
            truth = data.images(indices)
            for init in range(options.inits):
                model = build_model(Model(**MODELS[case.network]), data.input, 100 * number + init).eval()
                plain = update(model, data, indices, None, 0)
                seen = update(model, data, indices, case.defense, 100 * number + init)
                row: dict[str, Any] = {"case": case.name, "images": indices, "init": init, "attack": case.base}
                for arm, run in arms(case, options.seconds * case.images**0.5).items():
                    images = run(plain, seen, model)
                    row[arm], row[f"{arm} told"] = quality(images, truth), oracle(case, images, truth, data)
                row["mean image"] = quality(data.mean_image()[None].expand_as(truth), truth)
                rows.append(row)
                print(json.dumps(row), flush=True)
                if options.json is not None:
                    options.json.write_text(json.dumps(rows, indent=1))
    return rows


def summarise(rows: list[dict[str, Any]]) -> None:
    """Print one line for each case: means over the updates, and standard errors."""
    columns = ("undefended", "base", "adaptive", "adaptive told", "mean image")
    print(f"\n{'defense':26s}{'B':>3s}  {'base attack':21s}" + "".join(f"{column:>16s}" for column in columns))
    for name, images, base in dict.fromkeys((row["case"], len(row["images"]), row["attack"]) for row in rows):
        mine = [row for row in rows if (row["case"], len(row["images"]), row["attack"]) == (name, images, base)]
        print(
            f"{name:26s}{images:3d}  {base:21s}"
            + "".join(f"{_mean([row.get(column) for row in mine]):>16s}" for column in columns)
        )


def _mean(values: list[float | None]) -> str:
    numbers = [value for value in values if value is not None and value == value]
    if not numbers:
        return "-"
    error = statistics.stdev(numbers) / len(numbers) ** 0.5 if len(numbers) > 1 else float("nan")
    return f"{statistics.mean(numbers):.1f} +- {error:.1f}"


def main() -> None:
    """Read the options, compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--images", type=int, default=4, help="images for each case, in 2 batches at least (default 4)")
    parser.add_argument("--inits", type=int, default=1, help="networks for each batch, each batch its own (default 1)")
    parser.add_argument("--seconds", type=float, default=1.5, help="CPU seconds for one image, growing with the root of B")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows here, after each update")
    options = parser.parse_args()
    torch.set_num_threads(1)
    summarise(compare(options, federated_data(Data(source="samples", partition="order", normalize=True), 1, 0)))


if __name__ == "__main__":
    main()
