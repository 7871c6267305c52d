"""Measure the defenses on the update: what an attack rebuilds through each that does not know it, and one that does.

LeNet at initialisation, foolbox's CIFAR-10 samples at 16 x 16 pixels, one image an update and its label known: with sigmoids
attacked by natural, and with ReLU by inverting-gradients. "undefended" and "base" are that attack without and with the defense;
"adaptive" knows the defense. "joined" above 1: the client sends its image so often, the server steps with what it receives
(learning rate 0.1), and adaptive matches all rounds together. The counters were tried on images 0 and 1.

    python tests/benchmarks/defenses_on_update.py
    python tests/benchmarks/defenses_on_update.py --batch 4 --images 4 8 12 16 --cases gaussian-noise gradient-pruning clipping

found so far (the first command; about 10 CPU seconds a row; the other rows and the second command have not been run yet),
mean image 13.4 dB:

    network  defense                                 rounds   undefended         base     adaptive
    sigmoid  gaussian-noise 0.001                         1  44.6 +- 1.2  38.7 +- 1.7  41.2 +- 1.8
    sigmoid  gaussian-noise 0.01                          1  44.6 +- 1.2  20.4 +- 3.0  25.4 +- 1.7
    sigmoid  gaussian-noise 0.1                           1  44.6 +- 1.2   8.3 +- 0.4  15.5 +- 0.6
    sigmoid  gaussian-noise 0.1                           4  44.6 +- 1.2   5.4 +- 0.2  15.4 +- 0.5
    sigmoid  gradient-pruning 0.7                         1  44.6 +- 1.2  15.7 +- 0.6  39.1 +- 1.5
    sigmoid  gradient-pruning 0.9                         1  44.6 +- 1.2  10.5 +- 0.3  31.9 +- 1.5
    sigmoid  gradient-pruning 0.99                        1  44.6 +- 1.2   8.3 +- 0.7  21.1 +- 1.2
    sigmoid  random-masking 0.5                           1  44.6 +- 1.2  10.0 +- 1.2  42.1 +- 1.2
    sigmoid  random-masking 0.9                           1  44.6 +- 1.2   8.2 +- 0.9  32.4 +- 1.2
    sigmoid  quantization int8                            1  44.6 +- 1.2  43.0 +- 1.2  46.1 +- 0.7
    sigmoid  quantization sign                            1  44.6 +- 1.2   7.8 +- 0.6  24.8 +- 1.0
    sigmoid  random-masking 0.9                           4  44.6 +- 1.2   9.4 +- 0.5  40.3 +- 1.4
    sigmoid  quantization qsgd 15                         1  44.6 +- 1.2  16.6 +- 0.2  23.2 +- 0.2
    sigmoid  quantization qsgd 1                          1  44.6 +- 1.2   7.9 +- 0.4  12.9 +- 2.2
    sigmoid  deep-gradient-compression 0.99               1  44.6 +- 1.2   8.3 +- 0.7  21.1 +- 1.2
    sigmoid  deep-gradient-compression 0.99               4  44.6 +- 1.2   6.2 +- 0.7  26.9 +- 1.3
    sigmoid  clipping 0.1                                 1  44.6 +- 1.2   7.8 +- 0.9  44.4 +- 1.2
    relu     gradient-pruning 0.7                         1  17.1 +- 1.7  17.6 +- 1.7  17.4 +- 1.6
    relu     gradient-pruning 0.9                         1  17.1 +- 1.7  16.4 +- 1.4  16.7 +- 1.5
    relu     gradient-pruning 0.99                        1  17.1 +- 1.7  14.1 +- 0.9  14.8 +- 1.4

Four noisy rounds told no more than one: steps this long fit the model to its one image, whose later gradients drown in the noise.
On ReLU and from a cosine the base is barely above the mean image, and pruning and its counter change little.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import replace
from typing import Any

import torch

import fedleak
from fedleak.data.federated import FederatedData, federated_data
from fedleak.defenses.base import Situation, defenses
from fedleak.modalities.image.metrics import psnr
from fedleak.models import build_model
from fedleak.observation import Observation, Tensors
from fedleak.scenario.schema import Data, Model
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

CASES: list[tuple[dict[str, Any], int]] = [
    ({"name": "gaussian-noise", "std": 0.001}, 1),
    ({"name": "gaussian-noise", "std": 0.01}, 1),
    ({"name": "gaussian-noise", "std": 0.1}, 1),
    ({"name": "gaussian-noise", "std": 0.1}, 4),
    ({"name": "laplacian-noise", "scale": 0.01}, 1),
    ({"name": "laplacian-noise", "scale": 0.1}, 1),
    ({"name": "gradient-pruning", "ratio": 0.7}, 1),
    ({"name": "gradient-pruning", "ratio": 0.9}, 1),
    ({"name": "gradient-pruning", "ratio": 0.99}, 1),
    ({"name": "deep-gradient-compression", "ratio": 0.99}, 1),
    ({"name": "deep-gradient-compression", "ratio": 0.99}, 4),
    ({"name": "random-masking", "p": 0.5}, 1),
    ({"name": "random-masking", "p": 0.9}, 1),
    ({"name": "random-masking", "p": 0.9}, 4),
    ({"name": "clipping", "max_norm": 0.1}, 1),
    ({"name": "clipping", "max_norm": 0.02, "scope": "layer"}, 1),
    ({"name": "clipping", "max_norm": 0.01, "scope": "value"}, 1),
    ({"name": "clipping", "max_norm": 0.001, "scope": "value"}, 1),
    ({"name": "quantization", "format": "int8"}, 1),
    ({"name": "quantization", "format": "sign"}, 1),
    ({"name": "quantization", "format": "qsgd", "levels": 15}, 1),
    ({"name": "quantization", "format": "qsgd", "levels": 1}, 1),
]
BASES = {"sigmoid": ("natural", 10), "relu": ("inverting-gradients", 300)}
GRANT = frozenset({Knowledge.LOCAL_TRAINING, Knowledge.LABELS})
RATE = 0.1


def updates(
    model: torch.nn.Module, data: FederatedData, rows: list[int], defense: dict[str, Any] | None, rounds: int
) -> list[Observation]:
    """Return a client's updates on the same images in so many rounds, the server's model stepped with each."""
    memory: Tensors = {}
    seen: list[Observation] = []
    for server_round in range(1, rounds + 1):
        plain = fedleak.observe(model, data.images(rows), data.labels(rows), input=data.input, grant=GRANT)
        update, known = plain.update, ()
        if defense is not None:
            parameters = {key: value for key, value in defense.items() if key != "name"}
            at = Situation(Seed(5).derive(rows[0], server_round), server_round, 0, data.input, memory=memory)
            update, known = defenses.get(defense["name"])(**parameters).on_update(update, at), (defense,)
        seen.append(replace(plain, update=update, round=server_round, defenses=known))
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.sub_(RATE * update[name])
    return seen


def quality(seen: list[Observation], model: torch.nn.Module, truth: torch.Tensor, name: str, seed: int, **own: Any) -> float:
    """Return the mean PSNR in dB of an attack on the last update, in the order in which the images match best."""
    attack = fedleak.attack(name, labels="given", **own)
    for earlier in seen[:-1]:
        attack.remember([earlier])
    [result] = attack([seen[-1]], model, seed=seed)
    if result.images is None:
        print(f"    failed: {result.error}")
        return 0.0
    return float(psnr(result.images, truth).mean())


def main() -> None:
    """Read the options, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[8, 9, 10, 11], help="first of each batch (default 8 to 11)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pixels", type=int, default=16)
    parser.add_argument("--activations", nargs="+", default=list(BASES), choices=list(BASES))
    parser.add_argument("--cases", nargs="+", help="names of defenses (default all)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.process_time()
    data = federated_data(Data(source="samples", partition="order", image_size=options.pixels, normalize=True), 1, 0)
    batches = [list(range(first, first + options.batch)) for first in options.images]
    truths = [data.images(rows) for rows in batches]
    grey = [float(psnr(data.mean_image().expand_as(truth), truth).mean()) for truth in truths]
    print(f"mean image: {statistics.mean(grey):.1f} dB")
    print(f"{'network':9s}{'defense':58s}{'rounds':>7s}{'undefended':>13s}{'base':>13s}{'adaptive':>13s}")
    for activation in options.activations:
        base, iterations = BASES[activation]

        def measure(
            defense: dict[str, Any] | None,
            rounds: int = 1,
            knows: bool = False,
            activation: str = activation,
            base: str = base,
            iterations: int = iterations,
        ) -> str:
            name, own = ("adaptive", {"base": base, "joined": rounds}) if knows else (base, {})
            found = []
            for rows, truth in zip(batches, truths, strict=True):
                model = build_model(Model(name="lenet", activation=activation), data.input, rows[0]).eval()
                seen = updates(model, data, rows, defense, rounds)
                found.append(quality(seen, model, truth, name, rows[0], iterations=iterations, **own))
            error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else 0.0
            return f"{statistics.mean(found):6.1f} +-{error:4.1f}"

        undefended = measure(None)
        for defense, rounds in CASES:
            if options.cases is None or defense["name"] in options.cases:
                plain, known = measure(defense, rounds), measure(defense, rounds, knows=True)
                title = " ".join(str(value) for value in defense.values())
                print(f"{activation:9s}{title:58s}{rounds:7d}{undefended:>13s}{plain:>13s}{known:>13s}", flush=True)
    print(f"mean PSNR in dB +- standard error over {len(batches)} batches; {time.process_time() - begun:.0f} CPU seconds")


if __name__ == "__main__":
    main()
