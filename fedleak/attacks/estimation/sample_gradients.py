"""Gradients of many images, each by itself, from one backward pass; a block of entries of each tensor.

Formula: for a convolution dW[o, (i, u)] = sum_l d[o, l] a[i, l + u], with its input a and the derivatives d by its output;
likewise for linear and normalising layers. All d of a chunk of images come from one backward pass of sum <c, f(x)>.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.estimation.network import ClampedNetwork
from fedleak.errors import AttackError

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)
_READ = (nn.Conv2d, nn.Linear, *_NORMS)
_ELEMENTS = 2**24  # activations held at once


@dataclass(frozen=True)
class Block:
    """The entries of one parameter that are used: rows x columns of the tensor as a matrix.

    Attributes
    ----------
    name : str
        The parameter's.
    module : Module
        That it belongs to.
    rows, columns : Tensor
        Indices, ascending; columns of a vector are ``[0]``.
    """

    name: str
    module: nn.Module
    rows: Tensor
    columns: Tensor

    @property
    def size(self) -> int:
        """Number of entries."""
        return len(self.rows) * len(self.columns)

    @property
    def is_weight(self) -> bool:
        """Whether it is the module's weight, and not its bias."""
        return self.name.rpartition(".")[2] == "weight"

    def of(self, value: Tensor) -> Tensor:
        """Return the entries (size,) of the whole tensor ``value``."""
        return value.reshape(len(value), -1)[self.rows[:, None], self.columns].flatten()


class SampleGradients:
    """Gradients of <c, f(x)> of single images, by the weights and biases of convolutions, linear layers and norms.

    Other parameters (such as a class token) are not used.

    Parameters
    ----------
    network : ClampedNetwork
        Gives the gradient and the update.
    entries : int
        Used of each tensor, at most.
    generator : Generator
        Chooses them.

    Raises
    ------
    AttackError
        If there is no parameter that can be used.
    """

    def __init__(self, network: ClampedNetwork, entries: int, generator: torch.Generator) -> None:
        self._network = network
        self.input = network.input
        modules = dict(network.model.named_modules())
        self.blocks: list[Block] = []
        for name, parameter in network.parameters.items():
            module = modules[name.rpartition(".")[0]]
            if isinstance(module, _READ):
                self.blocks.append(_choose(name, module, parameter, entries, generator))
        if not self.blocks:
            raise AttackError("the network has no convolution, linear layer or norm whose gradient could be estimated from")
        self._modules = list(dict.fromkeys(block.module for block in self.blocks))
        self.chunk = self._measure()

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each block, in the order of the result's columns."""
        return [block.size for block in self.blocks]

    def observed(self) -> Tensor:
        """Return the used entries (D,) of the update."""
        return torch.cat([block.of(self._network.observed[block.name]) for block in self.blocks])

    def __call__(self, images: Tensor, signals: Tensor) -> Tensor:
        """Return the gradients (n, D) of images (n, C, H, W) in [0, 1], at signals (n, N) or (1, N)."""
        parts = zip(*(torch.split(value, self.chunk) for value in (images, signals.expand(len(images), -1))), strict=True)
        return torch.cat([self._few(*part) for part in parts])

    def _few(self, images: Tensor, signals: Tensor) -> Tensor:
        calls, score = self._run(images, signals)
        outputs = [output for runs in calls.values() for _, output in runs]
        found = iter(torch.autograd.grad(score, outputs, allow_unused=True))
        pairs: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {
            module: [(a.detach(), d) for (a, _), d in zip(runs, found, strict=False) if d is not None]
            for module, runs in calls.items()
        }
        with torch.no_grad():
            columns = []
            for block in self.blocks:
                terms = [_ENTRIES[_kind(block.module)](block, a, d) for a, d in pairs.get(block.module, [])]
                columns.append(sum(terms[1:], terms[0]) if terms else images.new_zeros(len(images), block.size))
            return torch.cat(columns, dim=1)

    def _run(self, images: Tensor, signals: Tensor) -> tuple[dict[nn.Module, list[tuple[Tensor, Tensor]]], Tensor]:
        calls: dict[nn.Module, list[tuple[Tensor, Tensor]]] = defaultdict(list)

        def record(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            calls[module].append((args[0], output))

        handles = [module.register_forward_hook(record) for module in self._modules]
        try:
            with torch.enable_grad():
                score = self._network.score(images.detach().requires_grad_(), signals)
        finally:
            for handle in handles:
                handle.remove()
        return calls, score

    def _measure(self) -> int:
        """Return how many images fit at once."""
        shape, classes = self._network.input.shape, self._network.input.num_classes
        like = next(iter(self._network.parameters.values()))
        with torch.no_grad():
            calls, _ = self._run(like.new_full((1, *shape), 0.5), like.new_ones(1, classes))
        held = sum(output.numel() for runs in calls.values() for _, output in runs)
        return max(1, min(32, _ELEMENTS // max(1, held)))


def _choose(name: str, module: nn.Module, parameter: Tensor, entries: int, generator: torch.Generator) -> Block:
    rows, columns = len(parameter), parameter[0].numel()
    wide = max(1, min(columns, max(math.isqrt(entries), entries // rows)))
    high = max(1, min(rows, entries // wide))

    def some(total: int, count: int) -> Tensor:
        return torch.randperm(total, generator=generator)[:count].sort().values.to(parameter.device)

    return Block(name, module, some(rows, high), some(columns, wide))


def _kind(module: nn.Module) -> str:
    return "conv" if isinstance(module, nn.Conv2d) else "linear" if isinstance(module, nn.Linear) else "norm"


def _convolution(block: Block, a: Tensor, d: Tensor) -> Tensor:
    module = block.module
    assert isinstance(module, nn.Conv2d)
    chosen = d[:, block.rows].flatten(2)
    if not block.is_weight:
        return chosen.sum(2)
    height, width = module.kernel_size
    (top, bottom), (left, right) = (_padding(module, axis) for axis in (0, 1))
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = functional.pad(a, (left, right, top, bottom), mode)
    channel, place = block.columns // (height * width), block.columns % (height * width)
    stride, dilation = module.stride, module.dilation
    if module.groups > 1:
        return _grouped(block, module, padded, chosen, d)
    patches = a.new_empty(len(a), len(block.columns), *d.shape[2:])
    for at in sorted(set(place.tolist())):
        row, column = at // width * dilation[0], at % width * dilation[1]
        mine = (place == at).nonzero()[:, 0]
        rows, columns = (slice(s, s + (n - 1) * t + 1, t) for s, n, t in zip((row, column), d.shape[2:], stride, strict=True))
        patches[:, mine] = padded[:, channel[mine], rows, columns]
    return torch.bmm(chosen, patches.flatten(2).mT).flatten(1)


def _grouped(block: Block, module: nn.Conv2d, padded: Tensor, chosen: Tensor, d: Tensor) -> Tensor:
    """Return the entries of a convolution in groups, where each row has inputs of its own."""
    patches = functional.unfold(padded, module.kernel_size, module.dilation, 0, module.stride)
    patches = patches.view(len(d), module.groups, -1, patches.shape[-1])[:, :, block.columns]
    group = block.rows // (module.out_channels // module.groups)
    return torch.einsum("nrl,nrcl->nrc", chosen, patches[:, group]).flatten(1)


def _padding(module: nn.Conv2d, axis: int) -> tuple[int, int]:
    if isinstance(module.padding, str):
        total = module.dilation[axis] * (module.kernel_size[axis] - 1) if module.padding == "same" else 0
        return total // 2, total - total // 2
    return module.padding[axis], module.padding[axis]


def _linear(block: Block, a: Tensor, d: Tensor) -> Tensor:
    chosen = d[..., block.rows].reshape(len(d), -1, len(block.rows))
    if not block.is_weight:
        return chosen.sum(1)
    inputs = a[..., block.columns].reshape(len(a), -1, len(block.columns))
    return torch.bmm(chosen.mT, inputs).flatten(1)


def _norm(block: Block, a: Tensor, d: Tensor) -> Tensor:
    module = block.module
    if block.is_weight:
        if isinstance(module, nn.GroupNorm):
            normal = functional.group_norm(a, module.num_groups, eps=module.eps)
        elif isinstance(module, nn.LayerNorm):
            normal = functional.layer_norm(a, module.normalized_shape, eps=module.eps)
        else:
            assert isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))
            normal = functional.batch_norm(a, module.running_mean, module.running_var, eps=module.eps)
        d = d * normal
    if isinstance(module, nn.LayerNorm):
        whole = d.reshape(len(d), -1, *module.normalized_shape).sum(1)
    else:
        whole = d.reshape(*d.shape[:2], -1).sum(2)
    return whole.reshape(len(d), len(whole[0]), -1)[:, block.rows[:, None], block.columns].flatten(1)


_ENTRIES = {"conv": _convolution, "linear": _linear, "norm": _norm}
