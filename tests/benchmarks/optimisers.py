"""Attacks on clients that step with momentum, weight decay or Adam, beside the same clients with plain SGD.

Images are CIFAR-10 samples in order, networks LeNet of the zoo at initialisation, steps taken by ``torch.optim``'s own classes.

    python tests/benchmarks/optimisers.py

PSNR in dB, mean over two clients (lowest in brackets), labels granted, 5 CPU s an attack; the machine was shared by eight others'
work, so that CPU seconds bought fewer iterations than they can:

    1 image, 5 steps                    closed-form   93.2 ( 80.3)  mean image 11.9
    1 image, 5 steps, momentum, decay   closed-form  105.4 ( 96.4)  mean image 11.9
    4 steps of 1                        unrolled      24.6 ( 23.9)  mean image 12.6
    4 steps of 1                        natural       17.7 ( 16.3)  mean image 12.6
    4 steps of 1, momentum              unrolled      20.8 ( 20.2)  mean image 12.6
    4 steps of 1, momentum              natural       15.9 ( 14.4)  mean image 12.6
    1 step of 1, Adam                   natural       20.7 ( 19.6)  mean image 11.9
    1 step of 4, Adam                   natural       16.5 ( 16.0)  mean image 12.6
    4 steps of 1, Adam                  unrolled      18.2 ( 18.1)  mean image 12.6

With 8 CPU s, ``unrolled`` has 23.7 dB of the four steps with momentum: the last step's image weighs a third of the first's.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from natural import GRANT, UNBOUNDED, scores

import fedleak
from fedleak.attacks.victims.mean_point import steps_of
from fedleak.attacks.victims.simulated import epochs_of
from fedleak.data.federated import FederatedData, federated_data
from fedleak.local.losses import loss_function
from fedleak.local.optimisers import make_optimiser
from fedleak.models import build_model
from fedleak.observation import LocalTraining, Observation, observe
from fedleak.scenario.schema import Data, Model

MOMENTUM = {"name": "sgd", "momentum": 0.9}
DECAYED = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}


class Case(NamedTuple):
    """One line of the table: the network, the client, and who attacks it."""

    attacks: tuple[str, ...]
    activation: str
    images: int
    batch: int
    steps: int
    rate: float
    optimizer: dict[str, Any] | None
    seconds: float = 5.0


CASES = {
    "1 image, 5 steps": Case(("closed-form",), "tanh", 1, 1, 5, 0.01, None),
    "1 image, 5 steps, momentum, decay": Case(("closed-form",), "tanh", 1, 1, 5, 0.01, DECAYED),
    "4 steps of 1": Case(("unrolled", "natural"), "sigmoid", 4, 1, 4, 0.01, None),
    "4 steps of 1, momentum": Case(("unrolled", "natural"), "sigmoid", 4, 1, 4, 0.01, MOMENTUM),
    "1 step of 1, Adam": Case(("natural",), "sigmoid", 1, 1, 1, 1e-3, {"name": "adam"}),
    "1 step of 4, Adam": Case(("natural",), "sigmoid", 4, 4, 1, 1e-3, {"name": "adam"}),
    "4 steps of 1, Adam": Case(("unrolled",), "sigmoid", 4, 1, 4, 1e-3, {"name": "adam"}),
    "5 steps of the same 1, Adam": Case(("unrolled",), "sigmoid", 1, 1, 5, 1e-3, {"name": "adam"}),
}


def seen(data: FederatedData, case: Case, number: int, told: dict[str, Any] | None = None) -> tuple[Observation, Any, Any, Any]:
    """Return what a server sees of a client, its network, images and labels; ``told`` changes what the attacker hears."""
    rows = list(range(number * case.images, (number + 1) * case.images))
    images, labels = data.images(rows), data.labels(rows)
    model = build_model(Model(name="lenet", activation=case.activation), data.input, 100 + number).eval()  # type: ignore[call-arg]
    observation = observe(model, images, labels, input=data.input, grant=GRANT)
    per_pass = -(-case.images // case.batch)
    local = LocalTraining(case.images, case.batch, case.steps, -(-case.steps // per_pass), case.rate, "eval", case.optimizer)
    named = {name: value.clone().requires_grad_() for name, value in observation.parameters.items()}
    optimiser = make_optimiser(case.optimizer or {"name": "sgd"}, named.values(), case.rate)
    for step in steps_of(tuple(range(case.images)) * epochs_of(local), case.images, local):
        optimiser.zero_grad()
        logits = torch.func.functional_call(model, named, (data.input.normalize(images[step]),))
        loss_function(local.loss)(logits, labels[step]).backward()
        optimiser.step()
    update = {name: value.detach() for name, value in named.items()}
    observation = replace(observation, kind="weights", update=update, local=replace(local, **told or {}))
    return observation, model, images, labels


def main() -> None:
    """Read the options, run all cases, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = federated_data(Data(source="samples", partition="order", normalize=True), 1, 0)
    for name in options.cases:
        case = CASES[name]
        for arm in case.attacks:
            rows, means, right = list[float](), list[float](), 0
            for number in range(options.clients):
                observation, model, images, labels = seen(data, case, number)
                limits = {} if arm == "closed-form" else {"patience": UNBOUNDED, "iterations": UNBOUNDED}
                run = fedleak.attack(arm, restarts=1, budget_seconds=case.seconds, **limits)
                [result] = run([observation], model, seed=number)
                if result.images is None:
                    print(f"{name}: {arm} failed: {result.error}", flush=True)
                    continue
                rows.append(scores(result.images, images)["psnr"])
                right += sum((Counter(result.labels) & Counter(labels.tolist())).values())
                means.append(scores(data.mean_image()[None].expand_as(images), images)["psnr"])
            if rows:
                found, mean = f"{statistics.mean(rows):7.1f} ({min(rows):5.1f})", statistics.mean(means)
                print(f"{name:36s}{arm:12s}{found}  mean image {mean:5.1f}  labels {right} of {case.images * options.clients}")


if __name__ == "__main__":
    main()
