"""Closed form for several local steps on one image: solve, simulate the steps, correct the gradient for their drift, repeat.

Formula: x_{k+1} = closed form of (W_0 - W_T) / (eta T) - c_k at W, the mean point of the steps; c_k the drift at x_k, which is
mean_t grad L(f(x_k; W_t(x_k)), y) - grad L(f(x_k; W), y), damped where a pass explains the update worse than the one before.
With momentum, weight decay or rates that differ, all means are weighted as the update weighs the steps (fedleak.local.path)
Source: fedleak's own; the closed form is R-GAP's (Zhu and Blaschko, arXiv 2010.07733)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.exact.features import leading_pair
from fedleak.attacks.victims.mean_point import mean_point
from fedleak.attacks.victims.stepping import State, Stepping, clipped
from fedleak.errors import AttackError
from fedleak.local.losses import Loss
from fedleak.modalities.image import InputSpec
from fedleak.observation import LocalTraining, Tensors

_PASSES = 40
_DONE = 3e-7
"""Relative misfit at which only the weights' rounding is left."""
_ROUNDING = 3e-8
"""Root mean square of float32's rounding error, relative to the value."""
_FAILED = 6
"""Passes without a better fit after which the best is kept."""
_TRUST = 10.0
"""What the noise that a solution is smoothed by falls by after a better fit; smoothed by the whole misfit, it would stay."""

Gradient = Callable[[Tensors, Tensor, int], Tensors]
"""Of parameters, one model input (C, H, W) and its label."""


@dataclass(frozen=True)
class Found:
    """The image that explains an update best.

    Attributes
    ----------
    input : Tensor
        (C, H, W) model input.
    label : int
        Its class.
    misfit : float
        Norm of the difference between the update and the simulated one, relative to the update's.
    passes : int
        How often the closed form was solved.
    """

    input: Tensor
    label: int
    misfit: float
    passes: int


def follow_drift(
    solve: Callable[[Tensors, Tensors, float], tuple[Tensor, int]],
    gradient: Gradient,
    sent: Tensors,
    received: Tensors,
    local: LocalTraining,
    input: InputSpec,
    head: str,
    out_of_time: Callable[[], bool] = lambda: False,
    *,
    softmax: bool = True,
) -> Found:
    """Return the one image behind several local steps.

    Parameters
    ----------
    solve : callable
        The closed form: model input and label from parameters, their gradient, and the noise in it relative to its norm.
    gradient : callable
        Of the loss, by parameter.
    sent, received : dict of str to Tensor
        Parameters, float64.
    local : LocalTraining
        Learning rate and number of steps.
    input : InputSpec
        Gives the range of pixels, to which guesses are held before the steps are simulated.
    head : str
        Name of the classifier, whose gradient is held at rank 1.
    out_of_time : callable
        Asked before each pass but the first.
    softmax : bool
        Whether the loss is a cross-entropy, whose derivatives by the logits sum to zero.

    Raises
    ------
    AttackError
        If the first pass fails, or the steps are of an optimiser that tells no mean gradient.
    """
    path = local.path
    if path is None:
        raise AttackError("the closed form reads mean gradients, which no adaptive optimiser's steps tell; use 'unrolled'")
    observed = {name: (value - received[name] - path.decay * value) / path.scale for name, value in sent.items()}
    middle = mean_point(sent, received, observed, local)
    correction: Tensors = {name: torch.zeros_like(value) for name, value in sent.items()}
    best: Found | None = None
    pull, noise = 1.0, _norm({n: sent[n] - received[n] for n in sent}) / _norm(sent)
    # Each step rounds the weights to float32.
    rounding = _ROUNDING * local.steps**0.5 * _norm(sent) / _norm({name: sent[name] - received[name] for name in sent})
    kept = wanted = correction
    failed = 0
    for number in range(1, _PASSES + 1):
        if best is not None and out_of_time():
            break
        corrected = {name: value - correction[name] for name, value in observed.items()}
        try:
            found, label = solve(middle, _one_image(corrected, head, softmax), max(noise, rounding))
        except AttackError:
            if best is None:
                raise
            found, label = best.input, best.label
        inside = input.normalize(input.denormalize(found[None]).clamp(0, 1))[0]
        simulated = _mean_gradient(gradient, sent, inside, label, local)
        misfit = _norm({n: observed[n] - simulated[n] for n in observed}) / _norm(observed)
        if best is None or misfit < best.misfit:
            stalled = best is not None and misfit > 0.97 * best.misfit
            best, kept = Found(found, label, misfit, number), correction
            there = gradient(middle, inside, label)
            wanted = {name: simulated[name] - there[name] for name in simulated}
            noise, pull, failed = min(noise, misfit) / _TRUST, min(1.0, 1.5 * pull), 0
            if misfit < _DONE or stalled:
                break
        else:
            noise, pull, failed = noise * _TRUST**0.5, pull / 1.5, failed + 1
            if failed == _FAILED:
                break
        correction = {name: torch.lerp(kept[name], wanted[name], pull) for name in kept}
    assert best is not None
    return best


def _mean_gradient(gradient: Gradient, at: Tensors, image: Tensor, label: int, local: LocalTraining) -> Tensors:
    path, stepping, state = local.path, Stepping(local), State()
    assert path is not None
    total: Tensors = {name: torch.zeros_like(value) for name, value in at.items()}
    if path.plain and local.gradient_clipping is None:
        for _ in range(local.steps):
            step = gradient(at, image, label)
            total = {name: value + step[name] / local.steps for name, value in total.items()}
            at = {name: value - local.learning_rate * step[name] for name, value in at.items()}
        return total
    for weight in path.weights:
        taken = list(gradient(at, image, label).values())
        seen = zip(total.items(), clipped(taken, local.gradient_clipping), strict=True)
        total = {name: value + weight * one for (name, value), one in seen}
        moved, state = stepping.step(list(at.values()), taken, state)
        at = dict(zip(at, moved, strict=True))
    return total


def gradient_of(model: nn.Module, buffers: Tensors, loss_of: Loss = functional.cross_entropy) -> Gradient:
    """Return the gradient of the loss as a function; ``model`` must be in eval mode while it is called."""

    def gradient(parameters: Tensors, image: Tensor, label: int) -> Tensors:
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        with torch.enable_grad():
            state = {**leaves, **{name: value.clone() for name, value in buffers.items()}}
            logits = torch.func.functional_call(model, state, (image[None],))
            loss = loss_of(logits, torch.tensor([label], device=logits.device))
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(leaves, found, strict=True))

    return gradient


def _one_image(gradient: Tensors, head: str, softmax: bool) -> Tensors:
    """Return the gradient with the classifier's replaced by its nearest of rank 1: drift that is left looks like more images."""
    weight, bias = gradient[f"{head}.weight"], gradient.get(f"{head}.bias")
    stacked = weight if bias is None else torch.cat([weight, bias[:, None]], 1)
    if softmax:
        stacked = stacked - stacked.mean(0)  # derivatives by the logits sum to zero
    if not bool(stacked.any()):
        raise AttackError("the classifier's gradient is zero: it says nothing about the image")
    left, size, right = leading_pair(stacked)
    flat = size * torch.outer(left, right)
    changed = {f"{head}.weight": flat[:, : weight.shape[1]]}
    return {**gradient, **changed} if bias is None else {**gradient, **changed, f"{head}.bias": flat[:, -1]}


def _norm(named: Tensors) -> float:
    return float(torch.stack([value.square().sum() for value in named.values()]).sum().sqrt())
