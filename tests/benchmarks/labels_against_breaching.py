"""Compare fedleak's label rules with breaching's label strategies on the same updates; part of against_breaching.py.

Accuracy is the size of the overlap of the restored with the true labels, both with repeats, divided by the batch size.
Untrained networks: image crops and independent random labels, as in label_rules.py. Trained ones (``--trained DIR``, which
is trained.py's cache): CIFAR-10's test images with their own labels, pixels not normalised.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from breaching_arm import STRATEGIES, Client, restored_labels
from label_rules import IMAGENET, NETWORKS, PIXELS, RULES, accuracy, crops
from trained import RECIPES, cifar10
from trained import trained as trained_network

import fedleak
from fedleak.attacks.labels.base import label_rules
from fedleak.errors import AttackError
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.scenario.schema import Model
from fedleak.seeding import Seed

SIZES = (1, 4, 8, 16)
Row = dict[str, Any]


def untrained(draws: int, seed: int) -> Iterator[tuple[str, int, int, Client]]:
    """Yield network's name, batch size, draw and client, each with a freshly drawn network."""
    pool = crops(256, Seed(seed).derive("crops"))
    spec = InputSpec((3, PIXELS, PIXELS), 10, **IMAGENET)
    for network in NETWORKS:
        for size in SIZES:
            for draw in range(draws):
                own = Seed(seed).derive(network, size, draw)
                random = own.numpy()
                images = pool[torch.from_numpy(random.permutation(len(pool))[:size])]
                labels = torch.from_numpy(random.integers(0, 10, size))
                model = build_model(Model.model_validate(NETWORKS[network]), spec, own.value).eval()
                yield network, size, draw, Client(images, labels, model, spec, labels_known=False)


def trained(draws: int, seed: int, weights: Path, images: Path) -> Iterator[tuple[str, int, int, Client]]:
    """Yield the same for trained networks."""
    data = cifar10(str(images))
    test = data.source.test
    assert test is not None
    for network in RECIPES:
        model = trained_network(network, data, weights)
        for size in SIZES:
            for draw in range(draws):
                chosen = Seed(seed).derive(network, size, draw).numpy().permutation(len(test))[:size]
                labels = torch.from_numpy(test.labels[chosen])
                client = Client(test.load(chosen.tolist()), labels, model.eval(), data.input, labels_known=False)
                yield f"{network}-trained", size, draw, client


def restored(client: Client) -> Row:
    """Return the accuracy of all rules and strategies on one update; none where a rule does not apply."""
    labels = client.labels.tolist()
    observation = fedleak.observe(client.model, client.images, client.labels, input=client.input)
    found: Row = {}
    for name in RULES:
        try:
            found[name] = accuracy(label_rules.get(name)().restore(observation, client.model), labels)
        except AttackError:
            found[name] = None
    return found | {f"breaching {name}": accuracy(tuple(restored_labels(name, client)), labels) for name in STRATEGIES}


def compare_labels(
    cases: Iterator[tuple[str, int, int, Client]], seed: int, add: Callable[[str, Callable[[], Row]], Row]
) -> list[Row]:
    """Return one row for each update; ``add`` keeps those that are done."""
    return [
        {"network": network, "size": size, **add(f"labels|{seed}|{network}|{size}|{draw}", lambda c=client: restored(c))}
        for network, size, draw, client in cases
    ]


def summarise_labels(rows: list[Row]) -> None:
    """Print the means over draws: all strategies of breaching, fedleak's rule ``consistent`` and the best other one."""
    others = [name for name in RULES if name != "consistent"]
    heads = ["consistent", "other", *STRATEGIES]
    print(f"\n{'labels':18s}{'B':>3s}" + "".join(f"{head:>16s}" for head in heads))
    for network, size in dict.fromkeys((row["network"], row["size"]) for row in rows):
        mine = [row for row in rows if (row["network"], row["size"]) == (network, size)]

        def mean(name: str, mine: list[Row] = mine) -> float:
            return statistics.mean(row[name] if row[name] is not None else 0.0 for row in mine)

        shown = [mean("consistent"), max(map(mean, others)), *(mean(f"breaching {name}") for name in STRATEGIES)]
        print(f"{network:18s}{size:3d}" + "".join(f"{value:16.2f}" for value in shown), flush=True)
    print("other: the best of fedleak's other rules in this line")
