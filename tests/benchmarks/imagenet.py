"""ImageNet-size images: what an iteration of fedleak and of breaching 0.1.2 costs at 224 x 224, and what an attack sees.

``cost`` runs each side in a process of its own, on one thread: a zoo's ResNet attacked with one image. CPU seconds are those
of an iteration after the first few; memory is the largest resident set, less what was resident once the network was built and
breaching or fedleak imported. ``grid`` attacks four of foolbox's ImageNet images (or those under ``--images DIR``) and writes a
PNG: a row each for the truth, each attack, the mean image and random noise, each with PSNR in dB and SSIM.

    python tests/benchmarks/imagenet.py cost --networks resnet18 resnet50
    python tests/benchmarks/imagenet.py grid imagenet.png --attacks inverting-gradients mmse --seconds 120

The first command gave, on one thread: ResNet-18 .210 CPU s an iteration and 286 MiB added, against .246 s and
517 MiB of breaching; ResNet-50 .792 s and 654 MiB against .837 s and 1,120 MiB.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

import fedleak
from fedleak.attacks.base import attacks
from fedleak.data.federated import FederatedData, federated_data
from fedleak.modalities.image.metrics import psnr, ssim
from fedleak.models import build_model
from fedleak.observation import observe
from fedleak.scenario.schema import Data, Model
from fedleak.seeding import Seed

SIDE = 224
WARM = 3
LABEL_HEIGHT = 14
OURS, THEIRS = "inverting-gradients", "invertinggradients"


def samples(images: Path | None) -> FederatedData:
    """Return the sample images, or those of a folder for each class, at 224 x 224 pixels, normalised."""
    source = {"source": "imagefolder", "path": images} if images is not None else {"source": "samples-imagenet"}
    return federated_data(Data(**source, partition="order", image_size=SIDE, normalize=True), 1, 0)


def peak() -> float:
    """Return the largest resident set so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def our_run(name: str, model: nn.Module, data: FederatedData) -> Callable[[int], object]:
    """Return fedleak's attack ``name`` on the first image, as a function of the number of iterations."""
    seen = observe(model, data.images([0]), data.labels([0]), input=data.input)
    return lambda count: fedleak.attack(name, iterations=count, restarts=1)([seen], model)


def their_run(name: str, model: nn.Module, data: FederatedData) -> Callable[[int], object]:
    """Return breaching's attack ``name`` on the same."""
    import breaching_arm

    breaching_arm.quiet()
    client = breaching_arm.Client(data.images([0]), data.labels([0]), model, data.input, labels_known=False)
    return lambda count: breaching_arm.attack(name, client, count, 0)()


def cost_of(side: str, name: str, network: str, iterations: int) -> dict[str, float]:
    """Return CPU seconds and MiB of an iteration; to be called in a fresh process."""
    torch.set_num_threads(1)
    data = samples(None)
    model = build_model(Model(name=network), data.input, 0).eval()
    run = (our_run if side == "fedleak" else their_run)(name, model, data)
    before = peak()
    spent = []
    for count in (WARM, WARM + iterations):
        begun = time.process_time()
        run(count)
        spent.append(time.process_time() - begun)
    return {"seconds": (spent[1] - spent[0]) / iterations, "mib": peak() - before, "resident_mib": peak()}


def cost(options: argparse.Namespace) -> None:
    """Measure both sides in turn, each several times, and print the medians."""
    sides = [("fedleak", name) for name in options.attacks] + [("breaching", name) for name in options.theirs]
    print(f"{'network':10s}{'':10s}{'attack':22s}{'CPU s/iteration':>16s}{'MiB added':>11s}{'MiB in all':>11s}")
    for network in options.networks:
        found: dict[tuple[str, str], list[dict[str, float]]] = {side: [] for side in sides}
        for _ in range(options.repeats):  # in turn, so that a busy machine slows both sides
            for side in sides:
                call = [sys.executable, __file__, "one", *side, network, str(options.iterations)]
                out = subprocess.run(call, check=True, capture_output=True, text=True).stdout
                found[side].append(json.loads(out.splitlines()[-1]))
        for side, rows in found.items():
            middle = {key: sorted(row[key] for row in rows)[len(rows) // 2] for key in rows[0]}
            print(
                f"{network:10s}{side[0]:10s}{side[1]:22s}{middle['seconds']:16.3f}{middle['mib']:11.0f}"
                f"{middle['resident_mib']:11.0f}",
                flush=True,
            )


def chosen_parameters(name: str, seconds: float, paced: int) -> dict[str, Any]:
    """Return an attack's parameters for a budget; ``paced`` iterations where its schedule is in iterations."""
    limit = paced if name == OURS else 10**6
    wanted = {"iterations": limit, "restarts": 1, "patience": 10**6, "budget_seconds": None if name == OURS else seconds}
    return {key: value for key, value in wanted.items() if key in attacks.get(name).Config.model_fields}


def grid(options: argparse.Namespace) -> None:
    """Attack each image, print PSNR and SSIM, and write the picture."""
    torch.set_num_threads(1)
    data = samples(options.images)
    truth = data.images(options.indices)
    noise = torch.rand(truth.shape, generator=Seed(0).derive("random-baseline").generator())
    rows: dict[str, Tensor] = {"truth": truth}
    for name in options.attacks:
        found, spent = [], 0.0
        for index in options.indices:
            model = build_model(Model(name=options.network), data.input, index).eval()
            seen = observe(model, data.images([index]), data.labels([index]), input=data.input)
            attack = fedleak.attack(name, **chosen_parameters(name, options.seconds, options.iterations))
            [result] = attack([seen], model, seed=index)
            found.append(torch.zeros_like(truth[:1]) if result.images is None else result.images)
            spent += result.cpu_seconds
            print(f"{name} image {index}: {float(psnr(found[-1], data.images([index]))):.2f} dB, {result.iterations} iterations, "
                  f"{result.cpu_seconds:.0f} CPU s, {result.error or result.stop_reason}", flush=True)  # fmt: skip
        rows[f"{name} ({spent / len(found):.0f} s)"] = torch.cat(found)
    rows["mean image"] = data.mean_image()[None].expand_as(truth)
    rows["own mean colour"] = truth.mean((2, 3), True).expand_as(truth)
    rows["random"] = noise
    for name, images in rows.items():
        print(f"{name:32s} PSNR {float(psnr(images, truth).mean()):6.2f} dB  SSIM {float(ssim(images, truth).mean()):.3f}")
    picture(rows, truth).save(options.png)


def picture(rows: dict[str, Tensor], truth: Tensor) -> Image.Image:
    """Draw one line of images for each row, each image with its scores below."""
    height = SIDE + LABEL_HEIGHT
    canvas = Image.new("RGB", (SIDE * len(truth), height * len(rows)), "white")
    draw = ImageDraw.Draw(canvas)
    for line, (name, images) in enumerate(rows.items()):
        scores = zip(psnr(images, truth).tolist(), ssim(images, truth).tolist(), strict=True)
        for column, (image, (quality, similar)) in enumerate(zip(images, scores, strict=True)):
            pixels = (image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
            canvas.paste(Image.fromarray(pixels), (column * SIDE, line * height))
            text = name if name == "truth" else f"{name}  {quality:.1f} dB  {similar:.2f}"
            draw.text((column * SIDE + 2, line * height + SIDE + 1), text, fill="black")
    return canvas


def main() -> None:
    """Read the options and run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("cost", help="seconds and memory of an iteration")
    part.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    part.add_argument("--attacks", nargs="*", default=[OURS], help="fedleak's")
    part.add_argument("--theirs", nargs="*", default=[THEIRS], help="breaching's")
    part.add_argument("--iterations", type=int, default=6, help="timed (default 6)")
    part.add_argument("--repeats", type=int, default=3, help="processes for each side (default 3)")
    part.set_defaults(run=cost)
    part = parts.add_parser("grid", help="attack four images, and draw them")
    part.add_argument("png", type=Path)
    part.add_argument("--attacks", nargs="+", default=[OURS, "mmse"], metavar="NAME")
    part.add_argument("--network", default="resnet18")
    part.add_argument("--indices", type=int, nargs="+", default=[0, 1, 2, 3], metavar="I")
    part.add_argument("--images", type=Path, metavar="DIR", help="a folder for each class, instead of foolbox's samples")
    part.add_argument("--iterations", type=int, default=120, help=f"of {OURS} (default 120)")
    part.add_argument("--seconds", type=float, default=80, help="CPU seconds for each image, for all others (default 80)")
    part.set_defaults(run=grid)
    part = parts.add_parser("one")  # what `cost` calls, in a fresh process
    part.add_argument("side")
    part.add_argument("name")
    part.add_argument("network")
    part.add_argument("count", type=int)
    part.set_defaults(run=lambda o: print(json.dumps(cost_of(o.side, o.name, o.network, o.count))))
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
