"""Networks trained on CIFAR-10 for the benchmarks: each in a few CPU minutes on one thread, kept in a folder for the next time.

Stochastic gradient descent with Nesterov momentum, a one-cycle learning rate, random flips and shifts of up to 4 pixels,
on all training images of the Parquet files that ``data.path`` holds.

    python tests/benchmarks/trained.py --data $FEDLEAK_DATA/cifar10 --cache trained

trains them all and prints their accuracy on the 3,000 test images: convnet .675 in 255 CPU seconds, resnet20 .718 in 253.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from fedleak.data.federated import FederatedData, federated_data
from fedleak.models import build_model
from fedleak.scenario.schema import Data, Model
from fedleak.seeding import Seed

BATCH = 128
SHIFT = 4


@dataclass(frozen=True)
class Recipe:
    """A network of the zoo, and how long and how fast it is trained."""

    model: dict[str, Any]
    epochs: int
    rate: float = 0.2
    decay: float = 5e-4


RECIPES = {
    "convnet": Recipe({"name": "convnet", "width": 8}, 6),
    "resnet20": Recipe({"name": "resnet20"}, 6),
}


def cifar10(path: str) -> FederatedData:
    """Return CIFAR-10 from the Parquet files in ``path``, in their order."""
    return federated_data(Data(source="parquet", path=path, partition="order"), 1, 0)


def trained(name: str, data: FederatedData, cache: Path) -> nn.Module:
    """Return network ``name`` of ``RECIPES`` in eval mode, from ``cache`` or trained now and saved there."""
    recipe = RECIPES[name]
    model = build_model(Model.model_validate(recipe.model), data.input, 0)
    file = cache / f"{name}.safetensors"
    if file.exists():
        model.load_state_dict(load_file(file))
        return model.eval()
    images, labels = data.images(range(len(data.source.train.labels))), torch.as_tensor(data.source.train.labels)
    train(model, data.input.normalize(images), labels.long(), recipe)
    cache.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), file)
    return model.eval()


def train(model: nn.Module, inputs: Tensor, labels: Tensor, recipe: Recipe) -> None:
    """Train ``model`` in place on model inputs (N, C, H, W) with labels (N,)."""
    generator = Seed(0).derive("train").generator()
    steps = recipe.epochs * (len(inputs) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.rate, momentum=0.9, nesterov=True, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, steps)
    model.train()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(inputs), generator=generator)
        for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
            loss = functional.cross_entropy(model(augmented(inputs[chosen], generator)), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def augmented(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Return the batch (B, C, H, W), half of it flipped, all of it shifted alike by up to 4 pixels."""
    flipped = torch.where(torch.rand(len(inputs), 1, 1, 1, generator=generator) < 0.5, inputs.flip(-1), inputs)
    top, left = torch.randint(0, 2 * SHIFT + 1, (2,), generator=generator).tolist()
    height, width = inputs.shape[-2:]
    return functional.pad(flipped, (SHIFT,) * 4)[..., top : top + height, left : left + width]


def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Return the share of model inputs (N, C, H, W) that ``model`` classifies as ``labels`` (N,)."""
    with torch.no_grad():
        found = torch.cat([model(chunk).argmax(dim=1) for chunk in inputs.split(250)])
    return float((found == labels).double().mean())


def main() -> None:
    """Train what is asked for and print its accuracy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DIR", help="folder with train*.parquet and test*.parquet of CIFAR-10")
    parser.add_argument("--cache", type=Path, required=True, metavar="DIR", help="where the weights are kept")
    parser.add_argument("--networks", nargs="+", default=list(RECIPES), choices=RECIPES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = cifar10(options.data)
    test = data.source.test
    assert test is not None, "CIFAR-10 has a test split"
    inputs, labels = data.input.normalize(test.load(range(len(test)))), torch.as_tensor(test.labels)
    for name in options.networks:
        begin = time.process_time()
        model = trained(name, data, options.cache)
        print(f"{name:15s} {accuracy(model, inputs, labels):.3f}  {time.process_time() - begin:.0f} CPU seconds", flush=True)


if __name__ == "__main__":
    main()
