"""BatchNorm statistics: of the batch that a client trained on, as its update tells them, and of a guess, differentiably.

Formula: batch = (post - k pre) / (1 - k), k = (1 - momentum)^T, for running statistics before and after T local steps
Source: GradInversion (arXiv 2104.07586); read off an update as by Hatamizadeh et al. (arXiv 2202.06924)

Exact after one step; after several it is the mean of the steps' statistics, later steps weighing more. All variances have
Bessel's correction, as the running ones do, so that those of batches of any size compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedleak.errors import AttackError
from fedleak.observation import Observation, Tensors


@dataclass(frozen=True)
class Statistics:
    """Of the inputs of one BatchNorm layer.

    Attributes
    ----------
    mean, variance : Tensor
        (C,), over images and places; the variance is divided by one less than their number.
    """

    mean: Tensor
    variance: Tensor


def batch_statistics(observation: Observation, model: nn.Module) -> dict[str, Statistics]:
    """Return by layer the statistics of the batch that the client trained on, for layers whose buffers tell them.

    There are none without the buffers that the client sent back (``Knowledge.BATCHNORM``), in eval mode, and for layers that
    keep none.

    Raises
    ------
    AttackError
        If a buffer is not finite.
    """
    received, found = observation.received_buffers or {}, {}
    for name, layer in _layers(model):
        before, after = _running(observation.buffers, name), _running(received, name)
        kept = _kept(observation, name, layer)
        if before is None or after is None or kept is None:
            continue
        mean, variance = ((post - kept * pre) / (1 - kept) for pre, post in zip(_pair(before), _pair(after), strict=True))
        found[name] = Statistics(mean, variance.clamp_min(0))  # rounding alone can take it below
    return found


def running_statistics(observation: Observation, model: nn.Module) -> dict[str, Statistics]:
    """Return by layer the running statistics that the server sent, for layers whose statistics have seen a batch.

    Raises
    ------
    AttackError
        If a buffer is not finite.
    """
    found = {name: _running(observation.buffers, name) for name, _ in _layers(model)}
    return {name: value for name, value in found.items() if value is not None and not _untouched(value)}


@contextmanager
def listening(network: nn.Module) -> Iterator[dict[str, Statistics]]:
    """Fill the dictionary given with each BatchNorm layer's statistics, differentiable, whenever ``network`` runs."""
    heard: dict[str, Statistics] = {}

    def listener(name: str) -> Any:
        def hear(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            inputs = args[0]
            over = [dim for dim in range(inputs.dim()) if dim != 1]
            single = inputs.numel() == inputs.shape[1]
            heard[name] = Statistics(inputs.mean(over), inputs.var(over, correction=0 if single else 1))

        return hear

    handles = [layer.register_forward_pre_hook(listener(name)) for name, layer in _layers(network)]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def statistics_distance(found: Mapping[str, Statistics], known: Mapping[str, Statistics]) -> Tensor:
    """Return the sum over the layers of ``known`` of the distances of means and of variances, scalar.

    Raises
    ------
    AttackError
        If a known layer was not heard: the network does not run it.
    """
    if missing := [name for name in known if name not in found]:
        raise AttackError(f"the network does not run its BatchNorm layer '{missing[0]}', so its statistics cannot be matched")
    pairs = [(found[name], known[name]) for name in known]
    means = [torch.linalg.vector_norm(a.mean - b.mean.to(a.mean)) for a, b in pairs]
    return torch.stack([*means, *(torch.linalg.vector_norm(a.variance - b.variance.to(a.variance)) for a, b in pairs)]).sum()


def _layers(model: nn.Module) -> list[tuple[str, _BatchNorm]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]


def _running(buffers: Tensors, name: str) -> Statistics | None:
    mean, variance = (buffers.get(f"{name}.{key}") for key in ("running_mean", "running_var"))
    if mean is None or variance is None:
        return None
    if not bool(mean.isfinite().all() and variance.isfinite().all()):
        raise AttackError(f"the statistics of the BatchNorm layer '{name}' are not finite: there is nothing to match")
    return Statistics(mean.detach().double(), variance.detach().double())


def _pair(value: Statistics) -> tuple[Tensor, Tensor]:
    return value.mean, value.variance


def _untouched(value: Statistics) -> bool:
    """Whether the statistics are those that every layer is born with."""
    return not bool(value.mean.any()) and bool((value.variance == 1).all())


def _kept(observation: Observation, name: str, layer: _BatchNorm) -> float | None:
    """Return how much of the running statistics sent is left in those received, or ``None`` if the client moved none."""
    local, counter = observation.local, f"{name}.num_batches_tracked"
    if local is not None and local.mode == "eval":
        return None
    before, after = (buffers.get(counter) for buffers in (observation.buffers, observation.received_buffers or {}))
    steps = int(after) - int(before) if before is not None and after is not None else (local.steps if local else 1)
    if steps <= 0:
        return None
    if layer.momentum is None:  # a plain mean over all batches ever seen
        return int(before) / (int(before) + steps) if before is not None else None
    return (1 - layer.momentum) ** steps if layer.momentum > 0 else None
