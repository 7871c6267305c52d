"""Compare the clients of a round attacked together with the same attack one by one: CPU seconds and PSNR, one thread.

Both arms do the same iterations from the same starts on the sample images, one image a client; ``together=1`` is one by one.
CPU seconds are for each client.

    python tests/benchmarks/together.py --attack inverting-gradients --iterations 60
    python tests/benchmarks/together.py --attack natural --iterations 4
    python tests/benchmarks/together.py --attack dlg --iterations 10

found on one core of a busy shared machine, torch 2.14.1, 16 clients on LeNet, CPU seconds a client:

    attack (iterations)       one by one    together    ratio    PSNR one by one    together
    inverting-gradients (60)       0.242       0.072      3.4              10.24       10.23
    natural (4)                    0.397       0.136      2.9              28.15       28.15
    dlg (10)                       0.974       0.509      1.9              36.76       36.77

A gain of four is not reached: per-client convolutions take most of the time, and dlg computes in float64, where PyTorch's
convolutions take the clients in turn. ResNet-20 has not been measured.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch

import fedleak
from fedleak.data.federated import federated_data
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import psnr
from fedleak.models import build_model
from fedleak.scenario.schema import Data, Model

INPUT = InputSpec((3, 32, 32), 10, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))


def main() -> None:
    """Run both arms and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--attack", default="inverting-gradients")
    parser.add_argument("--network", default="lenet")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = federated_data(Data(source="samples", partition="order"), 1, 0)
    images = data.images(range(options.clients))
    labels = 7 * torch.arange(options.clients) % 10
    model = build_model(Model(name=options.network), INPUT, 0).eval()
    seen = [
        replace(fedleak.observe(model, images[at : at + 1], labels[at : at + 1], input=INPUT), client=at)
        for at in range(options.clients)
    ]
    spent = {}
    for arm, limit in (("one by one", 1), ("together", None)):
        attack = fedleak.attack(options.attack, iterations=options.iterations, restarts=1, together=limit)
        begun = time.process_time()
        results = attack(seen, model, seed=0)
        spent[arm] = (time.process_time() - begun) / options.clients
        found = [float(psnr(r.images, images[at : at + 1])) for at, r in enumerate(results) if r.images is not None]
        print(f"{arm:12} {spent[arm]:8.3f} CPU s a client, PSNR {statistics.mean(found):.2f} dB of {len(found)}")
    print(f"ratio {spent['one by one'] / spent['together']:.2f}")


if __name__ == "__main__":
    main()
