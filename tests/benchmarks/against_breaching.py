"""Compare fedleak's attacks with breaching 0.1.2 (PyPI, unpatched): same networks, updates and images, equal CPU seconds.

All on one thread. breaching runs with its own defaults through its own user, server and configuration classes
(breaching_arm.py). It knows no budget, and its schedules depend on the number of iterations: so a few are timed, and it is
given as many as fill the seconds. fedleak's attacks are given the seconds, or, where their schedule is in iterations, the
same treatment. What each really took is in the column "CPU s". Networks are in eval mode, freshly drawn for each init; images
are foolbox's CIFAR-10 samples in order, normalised. Labels are known to both sides where there is more than one image;
breaching's FedAvg attack is told which labels each local step had, fedleak's only all of them, sorted. PSNR in dB and SSIM of
pixels clamped to [0, 1], each image with its best match in the batch; a mean over images, each the mean over its inits and
batches, with 1.96 standard errors over images. Baselines: the mean image of CIFAR-10, and each image's own mean colour, which
no attacker knows.

    pip install '.[bench]'
    python tests/benchmarks/against_breaching.py --json bench.json                     # all cases: about 95 CPU minutes
    python tests/benchmarks/against_breaching.py --json bench.json --cases lenet-b4    # one; rows that are there are kept

The CPU minutes of the full form: lenet-b1 7, lenet-b4 4, lenet-b8 3, resnet20-b1 19, resnet20-b4 6, resnet20-b8 7, convnet-b1 16,
resnet18-b1 16, the four FedAvg cases 3, 3, 5 and 5, labels 5. ``--network breaching`` takes breaching's own networks instead,
``--weights FILE`` trained ones of the zoo (pixels are then not normalised), ``--images 2 --inits 1 --seconds 3`` is a trial.
``--iterations 300 --plain --images 20 --inits 1 --cases lenet-b1`` is Deep Leakage from Gradients as its authors ran it.
224 x 224 pixels: imagenet.py.

breaching's ``deepleakage`` returns the labels that it started from instead of those that it found; here those found are taken.
Its ``modern`` fails on FedAvg updates ("NoneType" features), as does ``seethroughgradients``.

found on one thread of a shared two-core machine; the mean and 1.96 standard errors over images, PSNR in dB:

    case         images  runs  CPU s  ours                      best of breaching         mean image   own mean colour
    lenet-b1          8     8      4  closed-form 99.0 +- 5.7   modern 17.6 +- 1.7              12.6              14.0
                                      dlg         40.0 +- 9.6   deepleakage 16.1 +- 6.3
    lenet-b4         20    15      4  natural     29.3 +- 1.1   modern 15.0 +- 1.0              12.4              13.5
    lenet-b8         17     9      5  natural     25.2 +- 1.1   modern 14.3 +- 1.0              12.4              13.6
    resnet20-b1       3     3     20  mmse        16.6          invertinggradients 12.2         11.8

lenet-b1 with ``--images 8 --inits 1``, of which the closed form takes 0.4 s; resnet20-b1 with ``--images 3 --inits 1 --seconds
20``: SSIM .34 against .11, and breaching's ``modern`` 10.9 dB. The other cases have had trials of a few seconds only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import breaching_arm
import torch
from breaching_arm import Answer, Client
from labels_against_breaching import compare_labels, summarise_labels, trained, untrained
from natural import GRANT, batches, local_training
from safetensors.torch import load_file
from torch import Tensor, nn

import fedleak
from fedleak.attacks.base import attacks
from fedleak.data.federated import FederatedData, federated_data
from fedleak.evaluation.images import pair
from fedleak.modalities.image.metrics import psnr, ssim
from fedleak.models import build_model
from fedleak.observation import Observation, observe
from fedleak.scenario.schema import Data, Model
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

PACED = {"inverting-gradients"}
"""fedleak's attacks whose schedule is in iterations."""
UNBOUNDED = 10**6
TIMED = 20
BASELINES = ("mean image", "own mean colour")
THEIR_NETWORKS = {"lenet": "lenet_zhu", "convnet": "ConvNet", "resnet20": "ResNet20", "resnet18": "ResNet18"}


class Case(NamedTuple):
    """A network, images in a batch, local steps (0: a gradient), CPU seconds, how many images at least, and who attacks."""

    network: str
    size: int
    steps: int
    seconds: float
    images: int
    ours: tuple[str, ...]
    theirs: tuple[str, ...]


IG, MODERN, SEE = "invertinggradients", "modern", "seethroughgradients"
CASES = {
    "lenet-b1": Case("lenet", 1, 0, 4, 8, ("closed-form", "dlg"), ("deepleakage", IG, MODERN)),
    "lenet-b4": Case("lenet", 4, 0, 4, 20, ("natural",), (IG, MODERN)),
    "lenet-b8": Case("lenet", 8, 0, 5, 24, ("natural",), (IG, MODERN)),
    "resnet20-b1": Case("resnet20", 1, 0, 15, 8, ("mmse",), (IG, MODERN)),
    "resnet20-b4": Case("resnet20", 4, 0, 15, 8, ("inverting-gradients",), (IG, MODERN, SEE)),
    "resnet20-b8": Case("resnet20", 8, 0, 15, 16, ("inverting-gradients",), (IG, MODERN, SEE)),
    "convnet-b1": Case("convnet", 1, 0, 12, 8, ("mmse",), (IG, MODERN)),
    "resnet18-b1": Case("resnet18", 1, 0, 12, 8, ("mmse",), (IG, MODERN)),
    "fedavg-4x1-lenet": Case("lenet", 4, 4, 10, 8, ("natural", "unrolled"), (IG,)),
    "fedavg-2x4-lenet": Case("lenet", 8, 2, 10, 16, ("natural", "unrolled"), (IG,)),
    "fedavg-4x1-resnet20": Case("resnet20", 4, 4, 15, 8, ("inverting-gradients", "unrolled"), (IG,)),
    "fedavg-2x4-resnet20": Case("resnet20", 8, 2, 15, 16, ("inverting-gradients", "unrolled"), (IG,)),
}
Run = Callable[[], Answer]


class Rows:
    """Rows of results by key, written to a file after each."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.all: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file is not None and file.exists() else {}

    def add(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the row that is there already, or make it, keep it and save."""
        if key not in self.all:
            self.all[key] = make()
            if self._file is not None:
                self._file.write_text(json.dumps(self.all, indent=1))
        return self.all[key]


class Limit(NamedTuple):
    """What each side may spend: CPU seconds, or a number of iterations, which is then all that ends an attack early."""

    seconds: float
    iterations: int | None = None


def our_config(name: str, client: Client, limit: Limit, paced: int) -> dict[str, Any]:
    """Return the parameters of fedleak's attack ``name``: its defaults, but one start, and an end by the limit alone."""
    chosen: dict[str, Any] = {"restarts": 1}
    if limit.iterations is not None:
        chosen["iterations"] = limit.iterations
    elif name in PACED:
        chosen["iterations"] = paced
    else:
        chosen |= {"iterations": UNBOUNDED, "patience": UNBOUNDED, "budget_seconds": limit.seconds}
    chosen |= {"labels": "given"} if client.labels_known else {}
    fields = attacks.get(name).Config.model_fields
    return {key: value for key, value in chosen.items() if key in fields}


def seen(client: Client) -> Observation:
    """Return what fedleak's attacks are given."""
    if client.steps:
        return local_training(client.model, client.images, client.labels, client.input, client.steps, client.rate)
    grant = GRANT if client.labels_known else GRANT - {Knowledge.LABELS}
    return observe(client.model, client.images, client.labels, input=client.input, grant=grant)


def ours(name: str, client: Client, limit: Limit, seed: int) -> Run:
    """Set fedleak's attack ``name`` up, and return its call."""
    observation, paced = seen(client), TIMED
    if name in PACED and limit.iterations is None:
        begun = time.process_time()
        fedleak.attack(name, **our_config(name, client, limit, paced))([observation], client.model)
        paced = max(1, round(TIMED * limit.seconds / (time.process_time() - begun)))
    attack = fedleak.attack(name, **our_config(name, client, limit, paced))

    def run() -> Answer:
        [result] = attack([observation], client.model, seed=seed)
        return Answer(result.images, list(result.labels or ()), result.error or result.stop_reason)

    return run


def theirs(name: str, client: Client, limit: Limit, seed: int) -> Run:
    """Set breaching's attack ``name`` up for the iterations asked for, or as many as fill the seconds; return its call."""
    iterations = limit.iterations or breaching_arm.iterations_in(name, client, limit.seconds)
    return breaching_arm.attack(name, client, iterations, seed)


def scored(answer: Answer, client: Client, seconds: float) -> dict[str, Any]:
    """Return PSNR and SSIM of each image, and whether all labels are right."""
    truth = client.images
    images = answer.images if answer.images is not None else torch.full_like(truth, torch.nan)
    order = pair(images, truth)
    # A failed attack is scored as a black image.
    found = torch.stack([torch.zeros_like(truth[0]) if at is None else images[at].float() for at in order])
    return {
        "psnr": psnr(found, truth).tolist(),
        "ssim": ssim(found, truth).tolist(),
        "labels_right": sorted(answer.labels) == sorted(client.labels.tolist()),
        "cpu_seconds": seconds,
        "stop": answer.stop_reason,
    }


def measured(make: Callable[[], Run], client: Client) -> dict[str, Any]:
    """Set an arm up, time its call, and score what it found."""
    run = make()
    begun = time.process_time()
    answer = run()
    return scored(answer, client, time.process_time() - begun)


def network(case: Case, options: argparse.Namespace, data: FederatedData, seed: int) -> nn.Module:
    """Return the network that the client is sent, in eval mode."""
    if options.network == "breaching":
        return breaching_arm.network(THEIR_NETWORKS[case.network], data.input, seed)
    model = build_model(Model(name=case.network), data.input, seed)
    if options.weights is not None:
        model.load_state_dict(load_file(options.weights))
    return model.eval()


def arms(case: Case, options: argparse.Namespace) -> dict[str, Callable[[Client, Limit, int], Run]]:
    """Return who attacks: by name, what sets up an attack on a client within a limit, from a seed."""
    names = [name for name in options.attacks or case.ours if name in attacks.names()]
    chosen: dict[str, Callable[[Client, Limit, int], Run]] = {}
    if options.only != "theirs":
        chosen |= {name: lambda c, s, i, name=name: ours(name, c, s, i) for name in names or ["inverting-gradients"]}
    if options.only != "ours":
        chosen |= {f"breaching {name}": lambda c, s, i, name=name: theirs(name, c, s, i) for name in case.theirs}
    return chosen


def compare(name: str, options: argparse.Namespace, data: FederatedData, rows: Rows) -> list[dict[str, Any]]:
    """Run all arms of one case; print each row as it is done."""
    case, done = CASES[name], []
    count = -(-(options.images or case.images) // case.size)
    for indices in batches(case.size, count, len(data.source.train)):
        truth, labels = data.images(indices), data.labels(indices)
        flat: dict[str, Tensor] = dict(zip(BASELINES, (data.mean_image()[None], truth.mean((2, 3), True)), strict=True))
        for init in range(options.inits):
            model = network(case, options, data, Seed(options.seed).derive(str(indices), init).value)
            client = Client(truth, labels, model, data.input, case.steps, labels_known=case.size > 1)
            limit = Limit(options.seconds or case.seconds, options.iterations)
            where = f"{name}|{options.network}|{options.weights}|{options.plain}|{options.seed}|{indices}|{init}"
            for arm, prepare in arms(case, options).items():
                key = f"{where}|{arm}|{limit.iterations or limit.seconds:g}"
                row = rows.add(key, lambda p=prepare, c=client, s=limit, i=init: measured(lambda: p(c, s, i), c))
                done.append({"images": indices, "arm": arm, **row})
                quality, similar = statistics.mean(row["psnr"]), statistics.mean(row["ssim"])
                print(f"{name} images {indices} init {init} {arm:28s} {quality:6.2f} dB  SSIM {similar:.2f}  "
                      f"CPU {row['cpu_seconds']:5.1f} s  {row['stop']}", flush=True)  # fmt: skip
            done += [{"images": indices, "arm": arm, **scored(Answer(image.expand_as(truth), []), client, 0.0)}
                     for arm, image in flat.items()]  # fmt: skip
    return done


def by_image(rows: list[dict[str, Any]], arm: str, metric: str) -> dict[int, float]:
    """Return the mean over inits and batches for each image."""
    values: dict[int, list[float]] = {}
    for row in rows:
        for index, value in zip(row["images"], row[metric], strict=True) if row["arm"] == arm else ():
            values.setdefault(index, []).append(value)
    return {index: statistics.mean(found) for index, found in values.items()}


def interval(values: list[float]) -> str:
    """Return mean and 1.96 standard errors."""
    error = 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):7.2f} +-{error:5.2f}"


def summarise(name: str, rows: list[dict[str, Any]]) -> None:
    """Print one line for each arm, and how far the best of ours is from the best of theirs, image by image."""
    print(f"\n{name:24s}{'images':>7s}{'runs':>6s}{'PSNR dB':>17s}{'min':>7s}{'SSIM':>7s}{'labels':>8s}{'CPU s':>8s}")
    means: dict[str, float] = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        quality = by_image(rows, arm, "psnr")
        means[arm] = statistics.mean(quality.values())
        right = "" if arm in BASELINES else f"{sum(row['labels_right'] for row in mine)}/{len(mine)}"
        print(
            f"{arm:24.24s}{len(quality):7d}{len(mine):6d}{interval(list(quality.values())):>17s}"
            f"{min(min(row['psnr']) for row in mine):7.1f}{statistics.mean(by_image(rows, arm, 'ssim').values()):7.2f}"
            f"{right:>8s}{statistics.mean(row['cpu_seconds'] for row in mine):8.2f}"
        )
    peers = [arm for arm in means if arm.startswith("breaching")]
    own = [arm for arm in means if arm not in peers and arm not in BASELINES]
    if own and peers:
        best, peer = (max(some, key=means.__getitem__) for some in (own, peers))
        left, right_ = by_image(rows, best, "psnr"), by_image(rows, peer, "psnr")
        print(f"{best} minus {peer}: {interval([left[image] - right_[image] for image in left])} dB", flush=True)


def main() -> None:
    """Read the options, compare, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=[*CASES, "labels"], default=[*CASES, "labels"])
    parser.add_argument("--images", type=int, help="at least so many images for each case; by default the case's own")
    parser.add_argument("--inits", type=int, default=3, help="networks and starts for each batch (default 3)")
    parser.add_argument("--seconds", type=float, help="CPU seconds for each attack; by default the case's own")
    parser.add_argument("--iterations", type=int, metavar="N", help="of each attack, instead of seconds (closed forms have none)")
    parser.add_argument("--plain", action="store_true", help="give the network pixels as they are, not normalised")
    parser.add_argument("--only", choices=["ours", "theirs"], help="run one side alone")
    parser.add_argument("--attacks", nargs="+", metavar="NAME", help="fedleak's attacks; by default the case's own")
    parser.add_argument("--network", choices=["fedleak", "breaching"], default="fedleak", help="whose networks (default fedleak)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="safetensors state of the zoo's network, on plain pixels")
    parser.add_argument("--draws", type=int, default=10, help="networks and batches for each cell of labels (default 10)")
    parser.add_argument("--trained", type=Path, nargs=2, metavar=("DIR", "CIFAR10"), help="labels on trained networks, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all rows here; those that are there are not run again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    breaching_arm.quiet()
    data = federated_data(
        Data(source="samples", partition="order", normalize=not options.plain and options.weights is None), 1, 0
    )
    rows, begun = Rows(options.json), time.process_time()
    for name in options.cases:
        if name == "labels":
            updates = [untrained(options.draws, options.seed)]
            updates += [trained(options.draws, options.seed, *options.trained)] if options.trained else []
            summarise_labels(compare_labels(chain(*updates), options.seed, rows.add))
        else:
            summarise(name, compare(name, options, data, rows))
    print(f"\n{(time.process_time() - begun) / 60:.1f} CPU minutes")


if __name__ == "__main__":
    main()
