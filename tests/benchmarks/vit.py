"""Measure the closed form on vision transformers: one image behind patches with learned positions, one thread.

``--imagenet FOLDER``: torchvision's ViT-B/16 at 224 pixels, body as it is initialised, head drawn with a deviation of .01 (it is
initialised with zeros, through which no signal comes), one image of each of the first classes. ``--cifar FOLDER``: the zoo's
``vit`` on CIFAR-10 (train.parquet, test.parquet), at initialisation and after so many steps of Adam (rate 1e-3, batches of 64),
accuracy on 1,000 test images; a gradient, and weights after five steps of SGD at .01 with and without momentum .9.
PSNR in dB; baseline: a grey image.

    python tests/benchmarks/vit.py --imagenet $FEDLEAK_DATA/imagenet --cifar $FEDLEAK_DATA/cifar10
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.base import Reconstruction, attacks
from fedleak.data.federated import federated_data
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import psnr
from fedleak.models import build_model
from fedleak.observation import LocalTraining, Observation, observe
from fedleak.scenario.schema import Data, Model

CIFAR = InputSpec((3, 32, 32), 10, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))


def attacked(observation: Observation, model: nn.Module, truth: Tensor) -> tuple[float, float, Reconstruction]:
    """Return PSNR in dB, CPU seconds with all that is looked for in the network, and the result."""
    start = time.process_time()
    [result] = attacks.get("closed-form")()([observation], model)
    seconds = time.process_time() - start
    if result.images is None:
        raise SystemExit(f"failed: {result.error}")
    return float(psnr(result.images, truth)[0]), seconds, result


def after_steps(model: nn.Module, images: Tensor, labels: Tensor, momentum: float) -> Observation:
    """Return what a client sends after five steps of SGD on one image."""
    client = copy.deepcopy(model)
    optimizer = torch.optim.SGD(client.parameters(), 0.01, momentum=momentum)
    for _ in range(5):
        optimizer.zero_grad()
        functional.cross_entropy(client(CIFAR.normalize(images)), labels).backward()
        optimizer.step()
    sent, received = ({n: p.detach().clone() for n, p in one.named_parameters()} for one in (model, client))
    return Observation("weights", sent, received, CIFAR, local=LocalTraining(1, 1, 5, 5, 0.01, "eval"))


def line(said: str, found: list[tuple[float, float, Reconstruction]], truth: list[Tensor], kept: list[dict[str, object]]) -> None:
    """Print one case's median, minimum and CPU seconds."""
    values, seconds = [one[0] for one in found], [one[1] for one in found]
    grey = statistics.median(float(psnr(torch.full_like(image, 0.5), image)[0]) for image in truth)
    right = sum(values[i] >= 80 for i in range(len(values)))
    kept.append({"case": said, "psnr": values, "cpu_seconds": seconds, "method": [one[2].method for one in found]})
    print(
        f"{said:48} median {statistics.median(values):5.1f} min {min(values):5.1f} dB, {right} of {len(values)} at 80 dB, "
        f"{statistics.median(seconds):.3f} CPU s (most {max(seconds):.3f}), grey {grey:.1f}",
        flush=True,
    )


def of_imagenet(folder: Path, count: int, kept: list[dict[str, object]]) -> None:
    """Measure ViT-B/16."""
    from PIL import Image
    from torchvision.models import vit_b_16
    from torchvision.transforms import v2

    cut = v2.Compose([v2.PILToTensor(), v2.Resize(256), v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True)])
    spec = InputSpec((3, 224, 224), 1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.manual_seed(0)
    model = vit_b_16().eval()
    nn.init.normal_(model.heads.head.weight, std=0.01)
    found, truth = [], []
    for number, path in enumerate(
        sorted(folder.rglob("*.JPEG"))[:: max(1, len(sorted(folder.rglob("*.JPEG"))) // count)][:count]
    ):
        image = cut(Image.open(path).convert("RGB"))[None]
        truth.append(image)
        found.append(attacked(observe(model, image, torch.tensor([number]), input=spec), model, image))
    line("ViT-B/16, 224 px, random body", found, truth, kept)


def of_cifar(folder: Path, count: int, steps: list[int], kept: list[dict[str, object]]) -> None:
    """Measure the zoo's network at several states of training."""
    data = federated_data(Data(source="cifar10", path=folder), 1, 0)
    train, test = data.source.train, data.source.test
    model = build_model(Model(name="vit"), CIFAR, seed=0)
    optimizer, generator = torch.optim.Adam(model.parameters(), 1e-3), torch.Generator().manual_seed(0)
    held, done = list(range(len(train) - count, len(train))), 0
    for wanted in [0, *steps]:
        model.train()
        while done < wanted:
            chosen = torch.randint(0, len(train) - count, (64,), generator=generator)
            loss = functional.cross_entropy(
                model(CIFAR.normalize(train.load(chosen.tolist()))), torch.from_numpy(train.labels[chosen])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
        model.eval()
        with torch.no_grad():
            right = model(CIFAR.normalize(test.load(list(range(1000))))).argmax(1) == torch.from_numpy(test.labels[:1000])
        state = f"vit, {wanted} steps, {float(right.float().mean()):.0%}"
        for said, momentum in (("gradient", None), ("5 steps at .01", 0.0), ("5 steps at .01, momentum .9", 0.9)):
            found, truth = [], []
            for index in held:
                image, label = train.load([index]), torch.from_numpy(train.labels[[index]])
                seen = (
                    observe(model, image, label, input=CIFAR) if momentum is None else after_steps(model, image, label, momentum)
                )
                truth.append(image)
                found.append(attacked(seen, model, image))
            line(f"{state}: {said}", found, truth, kept)


def main() -> None:
    """Print one line for each network, state and kind of update."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imagenet", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--steps", type=int, nargs="*", default=[150, 600])
    parser.add_argument("--out", type=Path, help="every value, as JSON")
    given = parser.parse_args()
    torch.set_num_threads(1)
    kept: list[dict[str, object]] = []
    if given.imagenet:
        of_imagenet(given.imagenet, given.images, kept)
    if given.cifar:
        of_cifar(given.cifar, given.images, given.steps, kept)
    if given.out:
        given.out.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
