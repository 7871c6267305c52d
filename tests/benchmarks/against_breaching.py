"""Compare fedleak's attacks with breaching 0.1.2 (PyPI, unpatched), one image at a time, in one process on one thread.

Both sides attack the same network and the same image: a freshly drawn network for each image, its weights those of
fedleak's zoo (``--network lenet``) or breaching's own ``lenet_zhu`` initialisation. breaching runs through its own user,
server, attacker and configuration classes; only the image, the network and the number of iterations are ours. CPU
seconds are those of the whole process around the attack's call; each arm is called once before, for what only the first
call costs. breaching's ``deepleakage`` returns the labels that it started from instead of those that it found; its column
"label right" counts the ones that it found.

    pip install '.[bench]'
    python tests/benchmarks/against_breaching.py --json bench.json

found on one core of a shared machine, torch 2.15.0 (rebuilt: MSE below 0.001; ratio of the median CPU seconds):

    arm                       rebuilt  labels  PSNR dB: mean    min  CPU s: median    mean    ratio
    breaching deepleakage       12/20   17/20          28.99    5.0          17.46   16.22   1.0000
    dlg                         20/20   20/20          47.06   43.4           3.84    4.40   0.2197
    idlg                        20/20   20/20          46.90   43.4           3.82    4.28   0.2185
    closed-form                 20/20   20/20          95.84   87.0           0.31    0.32   0.0177
    random noise                 0/20    0/20           8.33    6.7           0.00    0.00   0.0000
    mean image                   0/20    0/20          12.39    8.8           0.00    0.00   0.0000

Six of breaching's eight failures are over within three seconds, which lowers its median: on the twelve images that it
rebuilds it takes 19 s, and dlg 0.14 to 0.32 of its time on each.

Inverting Gradients on images 0-3, with ``--theirs invertinggradients --attacks inverting-gradients --iterations 1000``,
mean PSNR of breaching and of fedleak: 13.05 and 15.88 dB with ``--network lenet``, 14.78 and 16.84 dB with
``--network lenet_zhu``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import breaching
import torch
from breaching.cases.models.model_preparation import LeNetZhu, VisionContainer
from breaching.cases.users import UserSingleStep
from torch import Tensor, nn

import fedleak
from fedleak.data.federated import FederatedData, federated_data
from fedleak.evaluation.metrics import mse, psnr
from fedleak.models import build_model
from fedleak.observation import InputSpec
from fedleak.scenario import Data, Model
from fedleak.seeding import Seed

REBUILT = 1e-3
"""MSE below which an image counts as rebuilt, as in iDLG's evaluation (arXiv 2001.02610)."""


class Case(NamedTuple):
    """One image (1, C, H, W) in [0, 1], its label (1,), and the network that the client was sent."""

    image: Tensor
    label: Tensor
    model: nn.Module
    input: InputSpec
    seed: int


class Answer(NamedTuple):
    """What an arm made of a case: an image (1, C, H, W), a label, and why it stopped."""

    image: Tensor | None
    label: int | None
    stop_reason: str = ""


Arm = Callable[[Case, int], Callable[[], Answer]]
"""Takes a case and the number of iterations, sets all up, and returns what is timed: the attack's call."""


def ours(name: str) -> Arm:
    """Return the arm that runs fedleak's attack ``name`` with its defaults."""

    def prepare(case: Case, iterations: int) -> Callable[[], Answer]:
        observation = fedleak.observe(case.model, case.image, case.label, input=case.input)
        attack = fedleak.attack(name, iterations=iterations)

        def run() -> Answer:
            [result] = attack([observation], case.model, seed=case.seed)
            return Answer(result.images, result.labels[0] if result.labels else None, result.stop_reason)

        return run

    return prepare


def theirs(name: str) -> Arm:
    """Return the arm that runs breaching's attack ``name`` as it is configured, apart from the number of iterations."""

    def prepare(case: Case, iterations: int) -> Callable[[], Answer]:
        overrides = [f"data.mean={list(case.input.mean)}", f"data.std={list(case.input.std)}", "user.provide_labels=False"]
        with contextlib.redirect_stdout(None):
            cfg_case = breaching.get_case_config("1_single_image_small", overrides)
            cfg_attack = breaching.get_attack_config(name, [f"optim.max_iterations={iterations}"])
        setup = {"device": torch.device("cpu"), "dtype": torch.float}
        model = VisionContainer(case.model)
        model.name = cfg_case.model
        loss = torch.jit.script(nn.CrossEntropyLoss())
        server = breaching.cases.construct_server(model, loss, cfg_case, setup)
        batch = {"inputs": case.input.normalize(case.image), "labels": case.label}
        user = UserSingleStep(server.vet_model(model), loss, [batch], setup, idx=0, cfg_user=cfg_case.user)
        shared, payloads, _ = server.run_protocol(user)
        attacker = breaching.attacks.prepare_attack(server.model, loss, cfg_attack, setup)
        trials: list[Any] = []
        trial = attacker._run_trial

        def recorded(*args: Any) -> Any:
            trials.append(trial(*args))
            return trials[-1]

        attacker._run_trial = recorded  # only listens: `deepleakage` does not hand out the labels that it found

        def run() -> Answer:
            with Seed(case.seed).derive("breaching").isolated():
                result, _ = attacker.reconstruct(payloads, shared, server.secrets)
            label = trials[0][1].argmax(-1) if isinstance(trials[0], tuple) else result["labels"]
            return Answer(case.input.denormalize(result["data"]), int(label))

        return run

    return prepare


def noise(case: Case, iterations: int) -> Callable[[], Answer]:
    """Guess uniform noise."""
    generator = Seed(case.seed).derive("random-baseline").generator()
    return lambda: Answer(torch.rand(case.image.shape, generator=generator), None)


def network(name: str, input: InputSpec, seed: int) -> nn.Module:
    """Build the network that the client is sent, in eval mode."""
    if name == "lenet_zhu":
        with Seed(seed).derive("lenet_zhu").isolated():
            return LeNetZhu().eval()
    return build_model(Model(name=name), input, seed).eval()


def measure(arm: Arm, case: Case, iterations: int) -> dict[str, Any]:
    """Run one arm on one case."""
    attack = arm(case, iterations)
    start = time.process_time()
    answer = attack()
    seconds = time.process_time() - start
    found = answer.image.float() if answer.image is not None else torch.full_like(case.image, torch.nan)
    return {
        "mse": float(mse(found, case.image)),
        "psnr": float(psnr(found, case.image)),
        "label_right": answer.label == int(case.label),
        "cpu_seconds": seconds,
        "stop_reason": answer.stop_reason,
    }


def compare(options: argparse.Namespace, data: FederatedData) -> dict[str, list[dict[str, Any]]]:
    """Run all arms on all images; print and save each line as it is done."""
    grey = data.mean_image()[None]
    arms: dict[str, Arm] = {f"breaching {name}": theirs(name) for name in options.theirs}
    arms |= {name: ours(name) for name in options.attacks}
    arms |= {"random noise": noise, "mean image": lambda case, iterations: lambda: Answer(grey, None)}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for index in [-1, *options.images]:  # -1: the first image once more, for the costs of first calls
        chosen = [max(index, 0)]
        seed = options.seed + chosen[0]
        model = network(options.network, data.input, seed)
        case = Case(data.images(chosen), data.labels(chosen), model, data.input, seed)
        for name, arm in arms.items():
            row = measure(arm, case, options.iterations if index >= 0 else 1)
            if index < 0:
                continue
            results[name].append({"image": index, **row})
            right = "right" if row["label_right"] else "-"
            print(
                f"image {index:2d}  {name:22s} MSE {row['mse']:.1e}  PSNR {row['psnr']:6.2f} dB  label {right:5s}  "
                f"CPU {row['cpu_seconds']:7.2f} s  {row['stop_reason']}",
                flush=True,
            )
        if options.json is not None:
            options.json.write_text(json.dumps({"options": vars(options), "results": results}, default=str, indent=1))
    return results


def summarise(results: dict[str, list[dict[str, Any]]]) -> None:
    """Print one line for each arm; ratios are ours to the first of breaching's, of the median CPU seconds."""
    peer = next((rows for name, rows in results.items() if name.startswith("breaching")), None)
    heads = ("arm", "rebuilt", "labels", "PSNR dB: mean", "min", "CPU s: median", "mean", "ratio")
    print("\n{:24s}{:>9s}{:>8s}{:>15s}{:>7s}{:>15s}{:>8s}{:>9s}".format(*heads))
    for name, rows in results.items():
        seconds = [row["cpu_seconds"] for row in rows]
        quality = [row["psnr"] for row in rows]
        middle = statistics.median(seconds)
        ratio = f"{middle / statistics.median(row['cpu_seconds'] for row in peer):9.4f}" if peer else ""
        rebuilt, labels = sum(row["mse"] < REBUILT for row in rows), sum(row["label_right"] for row in rows)
        print(
            f"{name:24s}{rebuilt:6d}/{len(rows):<2d}{labels:5d}/{len(rows):<2d}{statistics.mean(quality):15.2f}"
            f"{min(quality):7.1f}{middle:15.2f}{statistics.mean(seconds):8.2f}{ratio}"
        )
    print(f"rebuilt: MSE below {REBUILT:g}; ratio: of the median CPU seconds to breaching's")


def main() -> None:
    """Read the options, compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=range(20), metavar="I", help="which of the 20 sample images")
    parser.add_argument("--attacks", nargs="*", default=["dlg", "idlg", "closed-form"], help="fedleak's attacks")
    parser.add_argument("--theirs", nargs="*", default=["deepleakage"], help="breaching's attacks")
    parser.add_argument("--iterations", type=int, default=300, help="for both sides (default 300)")
    parser.add_argument("--network", default="lenet", help="of fedleak's zoo, or lenet_zhu for breaching's (default lenet)")
    parser.add_argument("--seed", type=int, default=0, help="of the first image's network; the others' follow (default 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows here, after each image")
    options = parser.parse_args()
    options.images = list(options.images)
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", module="breaching|torch.jit")
    summarise(compare(options, federated_data(Data(source="samples", partition="order"), 1, options.seed)))


if __name__ == "__main__":
    main()
