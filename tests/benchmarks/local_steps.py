"""Compare attacks on FedAvg weights at equal CPU seconds, over cases of local steps and learning rates.

Batches, networks, baselines and scores are those of ``natural.py`` beside this file: LeNet-sigmoid, labels given, standardised
channels, plain SGD in eval mode. Images are trained on in the order given in the first epoch, reversed in the second.

    python tests/benchmarks/local_steps.py

Mean PSNR in dB, lowest batch in brackets, 2 batches, 10 CPU s for each attack, one run with the machine shared (``--batches 2``,
``--cases 4x1 2x4``; 8x2 was not measured). ``surrogate-model`` ran by itself and later, when its schedule had been fitted to
the seconds; a dash stands where it has not been measured since:

    case   rate      unrolled       natural  surrogate-model           dlg  mean image
    4x1   0.001   29.0 (27.6)   24.2 (17.3)      15.7 (14.2)   21.8 (20.5)  13.3 (13.1)
    4x1   0.010   30.4 (29.1)   14.9 (14.4)      16.2 (14.5)   10.8 ( 9.6)  13.3 (13.1)
    2x4   0.001   24.9 (24.4)   25.5 (25.2)                -   23.4 (22.7)  12.2 (11.7)
    2x4   0.010   25.7 (25.3)   20.4 (19.1)                -   15.0 (14.4)  12.2 (11.7)
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from typing import NamedTuple

import torch
from natural import GRANT, attack, batches, scores
from torch import Tensor, nn

from fedleak.attacks.victims.mean_point import steps_of
from fedleak.attacks.victims.simulated import epochs_of
from fedleak.data.federated import federated_data
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import LocalTraining, Observation, observe
from fedleak.scenario.schema import Data, Model


class Case(NamedTuple):
    """Images behind an update, images in a step, passes, and CPU seconds for each attack."""

    images: int
    batch: int
    epochs: int
    seconds: float


CASES = {"4x1": Case(4, 1, 1, 10.0), "2x4": Case(8, 4, 1, 10.0), "8x2": Case(8, 2, 2, 20.0)}


def train(model: nn.Module, images: Tensor, labels: Tensor, input: InputSpec, case: Case, rate: float) -> Observation:
    """Return what a server sees of local SGD."""
    seen = observe(model, images, labels, input=input, grant=GRANT)
    local = LocalTraining(case.images, case.batch, -(-case.images // case.batch) * case.epochs, case.epochs, rate, "eval")
    weights = dict(seen.parameters)
    order = [row for epoch in range(epochs_of(local)) for row in list(range(case.images))[:: -1 if epoch % 2 else 1]]
    for rows in steps_of(order, case.images, local):
        leaves = {name: value.detach().requires_grad_() for name, value in weights.items()}
        logits = torch.func.functional_call(model, leaves, (input.normalize(images[rows]),))
        loss = torch.nn.functional.cross_entropy(logits, labels[rows])
        gradient = torch.autograd.grad(loss, list(leaves.values()))
        weights = {name: value - rate * g for (name, value), g in zip(weights.items(), gradient, strict=True)}
    return replace(seen, kind="weights", update=weights, local=local)


def main() -> None:
    """Read the options, run all arms on all updates, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--attacks", nargs="+", default=["unrolled", "natural", "surrogate-model", "dlg"], metavar="NAME")
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[1e-3, 1e-2])
    parser.add_argument("--batches", type=int, default=3, help="batches of images for each case, from the second on (default 3)")
    parser.add_argument("--seconds", type=float, help="CPU seconds for each attack; by default the case's own")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = federated_data(Data(source="samples", partition="order", normalize=True), 1, 0)
    print(f"{'case':6s}{'rate':>7s}  " + "".join(f"{arm:>18s}" for arm in [*options.attacks, "mean image"]))
    for name in options.cases:
        for rate in options.learning_rates:
            found: dict[str, list[float]] = {}
            case = CASES[name]
            for number, rows in enumerate(batches(case.images, options.batches + 1, 20)[1:], start=1):
                truth, labels = data.images(rows), data.labels(rows)
                model = build_model(Model(name="lenet"), data.input, 100 * number).eval()
                seen = train(model, truth, labels, data.input, case, rate)
                for arm in options.attacks:
                    row = attack(arm, seen, model, truth, options.seconds or case.seconds, number)
                    found.setdefault(arm, []).append(row["psnr"])
                found.setdefault("mean image", []).append(scores(data.mean_image()[None].expand_as(truth), truth)["psnr"])
            cells = "".join(f"{statistics.mean(q):8.1f} ({min(q):4.1f})  " for q in found.values())
            print(f"{name:6s}{rate:7.3f}  {cells}", flush=True)


if __name__ == "__main__":
    main()
