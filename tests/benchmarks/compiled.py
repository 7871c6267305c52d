"""Measure whether ``torch.compile`` pays for gradient matching: CPU seconds an iteration, and what compiling costs first.

One image, cosine distance, the gradient by image of the distance between gradients; one thread. Compiled is the whole distance
with the inner gradient taken by ``torch.func.grad``, as what autograd recorded cannot be compiled and differentiated again.

    python tests/benchmarks/compiled.py

found, on the CPU (torch 2.14.1):

    network   eager s   compiled s  to compile, s  pays after
    lenet      0.0026       0.0022            6.1      15,300 iterations
    resnet20   0.0231       0.0197           41.2      12,300 iterations

That is several times what attacks run for here, so that they have no such switch, and none for CUDA graphs. Not measured on a
GPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad
from torch.nn import functional

from fedleak.attacks.matching.objectives import cosine_distance
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import Tensors
from fedleak.scenario.schema import Model

INPUT = InputSpec((3, 32, 32), 10)
LABEL = torch.tensor([3])


def distances(network: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return the distance to another image's gradient, eager by autograd and compiled, as functions of an image."""
    model = build_model(Model(name=network), INPUT, 0).eval()
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters: Tensors, image: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(model, {**parameters, **buffers}, (image,)), LABEL)

    observed = list(grad(loss)(parameters, torch.rand(1, *INPUT.shape)).values())

    def eager(image: Tensor) -> Tensor:
        leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
        return cosine_distance(torch.autograd.grad(loss(leaves, image), list(leaves.values()), create_graph=True), observed)

    def whole(image: Tensor) -> Tensor:
        return cosine_distance(list(grad(loss)(parameters, image).values()), observed)

    return eager, torch.compile(whole)


def seconds(distance: Callable[[Tensor], Tensor], iterations: int) -> float:
    """Return CPU seconds for an iteration."""
    image = torch.rand(1, *INPUT.shape).requires_grad_()
    begun = time.process_time()
    for _ in range(iterations):
        torch.autograd.grad(distance(image), image)
    return (time.process_time() - begun) / iterations


def main() -> None:
    """Measure each network and print a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["lenet", "resnet20"])
    parser.add_argument("--iterations", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'network':10s}{'eager s':>9s}{'compiled s':>12s}{'to compile, s':>15s}{'pays after':>12s}")
    for network in options.networks:
        eager, compiled = distances(network)
        seconds(eager, 3)
        before = seconds(eager, options.iterations)
        first = seconds(compiled, 1)
        after = seconds(compiled, options.iterations)
        pays = f"{first / (before - after):,.0f}" if after < before else "never"
        print(f"{network:10s}{before:9.4f}{after:12.4f}{first:15.1f}{pays:>12s} iterations", flush=True)


if __name__ == "__main__":
    main()
