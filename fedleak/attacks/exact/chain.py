"""Walks a feed-forward network from its classifier down to its input, each layer's input solved from its gradient.

Formula: classifier: dW = d h^T; activation: z = f^-1(h), d <- d * f'(z); linear layer: h = d dW / |d|^2, d <- W^T d;
convolution: stacked least squares (see ``convolution.py``), d <- K^T d; BatchNorm in eval mode: an affine map.
Source: R-GAP (Zhu and Blaschko, arXiv 2010.07733).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from fedleak.attacks.exact.activations import invertible, output_range, preimage
from fedleak.attacks.exact.convolution import ConvolutionSystem, Geometry, solve
from fedleak.attacks.exact.count import LayerCount, count_convolution
from fedleak.attacks.exact.features import classifier_features
from fedleak.attacks.exact.kinks import repair_kinks
from fedleak.attacks.exact.missing import completed_features
from fedleak.attacks.exact.prior import GaussianPrior
from fedleak.errors import AttackError
from fedleak.models.inspect import ExecutionOrder, LeafCall
from fedleak.observation import Tensors

_EXACT = 1e-6
"""Relative noise up to which a gradient counts as exact: float32 rounding, no defense."""
_ROUNDING = 2e-7
"""Relative noise of float32 rounding."""
_AMPLE = 0.1
"""Slack, relative to the unknowns, from which a system with float32 noise is well conditioned as a rule."""


@dataclass(frozen=True)
class State:
    """What is known at one point between two layers, for one image and without the batch axis.

    Attributes
    ----------
    h : Tensor
        The values.
    d : Tensor
        Derivative of the loss by them.
    weight : Tensor
        How far each of ``h`` counts as an equation for the layer below; 0 where unknown.
    """

    h: Tensor
    d: Tensor
    weight: Tensor

    def reshape(self, shape: tuple[int, ...]) -> State:
        """Return the same state in another shape."""
        return State(self.h.reshape(shape), self.d.reshape(shape), self.weight.reshape(shape))


@dataclass(frozen=True)
class ImagePrior:
    """What is known of any image, in units of model inputs.

    Attributes
    ----------
    center : Tensor
        (C, H, W); directions that no equation sees keep its value.
    spread : float
        Standard deviation of a value.
    difference : float
        Standard deviation of the difference of neighbours.
    """

    center: Tensor
    spread: float
    difference: float


@dataclass(frozen=True)
class ChainSolution:
    """What the walk arrives at.

    Attributes
    ----------
    input : Tensor
        (C, H, W) model input, float64.
    label : int
        Of the image.
    counts : tuple of LayerCount
        Of the convolutions, with the outputs that were in fact known.
    """

    input: Tensor
    label: int
    counts: tuple[LayerCount, ...]


def check_chain(order: ExecutionOrder, *, training: bool) -> None:
    """Raise unless each layer of ``order`` can be inverted.

    Raises
    ------
    AttackError
        Naming the first obstacle.
    """
    for call in order.calls:
        reason = _obstacle(call, training=training)
        if reason:
            raise AttackError(
                f"the closed form cannot pass '{call.name}' ({type(call.module).__name__}): {reason}; use gradient matching"
            )
    if not order.feed_forward:
        raise AttackError(f"the closed form needs a feed-forward network, but {order.breaks[0]}; use gradient matching")
    if not order.calls or not isinstance(order.calls[-1].module, nn.Linear):
        last = type(order.calls[-1].module).__name__ if order.calls else "nothing"
        raise AttackError(
            f"the closed form starts from an nn.Linear that is executed last, but that is {last}; use gradient matching"
        )


def walk(
    order: ExecutionOrder,
    parameters: Tensors,
    buffers: Tensors,
    gradient: Tensors,
    *,
    label: int | None = None,
    image: ImagePrior,
    least_noise: float = 0.0,
    known: Tensors | None = None,
    softmax: bool = True,
    out_of_time: Callable[[], bool] = lambda: False,
) -> ChainSolution:
    """Return the input of the one image behind ``gradient``.

    Parameters
    ----------
    order : ExecutionOrder
        Checked by :func:`check_chain`.
    parameters, buffers, gradient : dict of str to Tensor
        By the model's names, float64, on one device.
    label : int, optional
        If known.
    image : ImagePrior
        What is known of any image before.
    least_noise : float
        Noise in the gradient, relative to its norm, if it is known to be more than the classifier's gradient shows.
    known : dict of str to Tensor, optional
        By the model's names, boolean: which entries of the gradient are known; all by default.
    softmax : bool
        Whether the loss is a cross-entropy, as for :func:`~fedleak.attacks.exact.features.classifier_features`.
    out_of_time : callable
        Asked before each layer.

    Raises
    ------
    AttackError
        If the gradient is not that of one image, a layer passes nothing on, or time runs out.
    """
    head = order.calls[-1].name
    weight = parameters[f"{head}.weight"]
    if known is None:
        features = classifier_features(weight, gradient[f"{head}.weight"], gradient.get(f"{head}.bias"), label, softmax=softmax)
        certain = torch.ones_like(features.h)
    else:
        last = next((call.module for call in reversed(order.calls) if invertible(call.module)), None)
        silent = type(last) is nn.ReLU
        features, certain = completed_features(weight, parameters.get(f"{head}.bias"), gradient, known, head, label, silent)
    state = State(features.h, features.d @ weight, certain)
    counts: list[LayerCount] = []
    for position in range(len(order.calls) - 2, -1, -1):
        call = order.calls[position]
        if out_of_time():
            raise AttackError(f"budget spent before layer '{call.name}'; raise budget_seconds")
        state = state.reshape(call.output_shape)
        if isinstance(call.module, nn.Linear):
            state = _through_linear(call.name, state, parameters, gradient, known)
        elif isinstance(call.module, nn.Conv2d):
            system, counted = _convolution_system(call, state, parameters, gradient, known)
            counts.append(counted)
            h = _solve_convolution(system, max(features.noise, least_noise), counted, _below(order, position) or image)
            state = State(h, system.geometry.fold(system.kernel.mT @ system.d), torch.ones_like(h))
        elif isinstance(call.module, nn.BatchNorm1d | nn.BatchNorm2d):
            state = through_batchnorm(call, state, parameters, buffers)
        elif invertible(call.module):
            back = preimage(call.module, state.h)
            below = order.calls[position - 1]
            sums = gradient.get(f"{below.name}.bias")
            if sums is not None and known is not None:
                # A sum that is missing must not look like one that does not hold; nothing compares with NaN.
                sums = sums.where(known[f"{below.name}.bias"], torch.nan)
            if position and sums is not None and isinstance(below.module, nn.Conv2d | nn.BatchNorm2d):
                back = repair_kinks(call.module, back, state.h, state.d, sums)
            state = State(back.z, state.d * back.slope, state.weight * back.weight)
        state = state.reshape(call.input_shape)
        if not bool(torch.isfinite(state.h).all()):
            raise AttackError(f"the solution below layer '{call.name}' is not finite; use gradient matching")
    # A network may flatten in forward(), where no leaf is seen to do so.
    return ChainSolution(state.h.reshape(image.center.shape), features.label, tuple(counts[::-1]))


def _obstacle(call: LeafCall, *, training: bool) -> str | None:
    module = call.module
    if isinstance(module, nn.Flatten | nn.Unflatten | nn.Identity) or invertible(module):
        return None
    if isinstance(module, nn.Linear):
        return None if len(call.input_shape) == 1 else f"it takes {call.input_shape}, expected one axis"
    if isinstance(module, nn.Conv2d):
        if Geometry.of(module, call.input_shape) is None:
            return "only ungrouped, evenly zero-padded convolutions are supported"
        return None
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        if training or module.running_mean is None:
            return "in train mode it normalises by the batch's own statistics"
        return None
    if isinstance(module, nn.Dropout | nn.Dropout2d):
        return "it drops units at random in train mode" if training and module.p > 0 else None
    if isinstance(module, nn.AdaptiveAvgPool2d) and call.input_shape == call.output_shape:
        return None
    return "it has no inverse here"


def _through_linear(name: str, state: State, parameters: Tensors, gradient: Tensors, known: Tensors | None) -> State:
    weight = parameters[f"{name}.weight"]
    d = gradient.get(f"{name}.bias", state.d)
    if known is not None:
        d = state.d if f"{name}.bias" not in known else d.where(known[f"{name}.bias"], state.d)
        energies = d.square() @ known[f"{name}.weight"].to(d)
        h = d @ gradient[f"{name}.weight"] / energies.clamp_min(torch.finfo(d.dtype).tiny)
        return State(h, d @ weight, (energies > 0).to(d))
    energy = d @ d
    if float(energy) == 0:
        raise AttackError(f"no derivative reaches linear layer '{name}': its units are all off for this image")
    h = d @ gradient[f"{name}.weight"] / energy
    return State(h, d @ weight, torch.ones_like(h))


def _convolution_system(
    call: LeafCall, state: State, parameters: Tensors, gradient: Tensors, known: Tensors | None
) -> tuple[ConvolutionSystem, LayerCount]:
    module = call.module
    assert isinstance(module, nn.Conv2d)
    geometry = Geometry.of(module, call.input_shape)
    assert geometry is not None
    outputs = module.out_channels
    flat = state.reshape((outputs, -1))
    bias = parameters.get(f"{call.name}.bias")
    z = flat.h if bias is None else flat.h - bias[:, None]
    kernel, observed = (named[f"{call.name}.weight"].reshape(outputs, -1) for named in (parameters, gradient))
    mask = None if known is None else known[f"{call.name}.weight"].reshape(outputs, -1)
    system = ConvolutionSystem(
        geometry, kernel, flat.weight, flat.d, z, observed, known=None if mask is None else mask.to(observed)
    )
    return system, count_convolution(call.name, geometry, outputs, int((flat.weight > 0).sum()), survivors=mask)


def _below(order: ExecutionOrder, position: int) -> tuple[float, float] | None:
    """Return the range of what layer ``position`` takes from the layers before it; ``None`` if it takes the image."""
    if not any(isinstance(call.module, nn.Linear | nn.Conv2d) for call in order.calls[:position]):
        return None
    return output_range(order.calls[position - 1].module)


def _solve_convolution(
    system: ConvolutionSystem, noise: float, counted: LayerCount, below: ImagePrior | tuple[float, float]
) -> Tensor:
    """Solve without a prior where the equations are many and exact; otherwise once more, with one as strong as the noise."""
    shape = system.geometry.input_shape
    start = below.center.to(system.z).reshape(-1) if isinstance(below, ImagePrior) else system.z.new_zeros(prod(shape))
    u = solve(system, start)
    if noise <= _EXACT and counted.slack >= _AMPLE * counted.unknowns:
        return u
    residual = sum(float(block.square().sum()) for block in system.residual(u))
    target = sum(float(block.square().sum()) for block in system.target())
    # With few equations left over, the residual says nothing of the noise.
    variance = residual / counted.slack if counted.slack > _AMPLE * counted.unknowns else 0.0
    variance = max(variance, max(noise, _ROUNDING) ** 2 * target / counted.equations)
    if isinstance(below, ImagePrior):
        prior = GaussianPrior(variance / below.spread**2, variance / below.difference**2)
        return solve(replace(system, prior=prior), start)
    inside = u.clamp(*below)
    spread = inside.var().clamp_min(1e-12)
    return solve(replace(system, prior=GaussianPrior(variance / float(spread))), torch.full_like(u, float(inside.mean())))


def through_batchnorm(call: LeafCall, state: State, parameters: Tensors, buffers: Tensors) -> State:
    """Return what is known below a BatchNorm layer in eval mode; the channel axis comes first."""
    module = call.module
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    shape = (-1,) + (1,) * (state.h.dim() - 1)
    mean, variance = (buffers[f"{call.name}.{part}"].reshape(shape) for part in ("running_mean", "running_var"))
    scale = 1 / (variance + module.eps).sqrt()
    if module.affine:
        scale = scale * parameters[f"{call.name}.weight"].reshape(shape)
    shift = parameters[f"{call.name}.bias"].reshape(shape) if module.affine else torch.zeros_like(mean)
    # A scale of zero passes nothing on: those values are unknown.
    passing = (scale.abs() > 1e-12).to(state.h.dtype)
    safe = torch.where(passing > 0, scale, torch.ones_like(scale))
    return State((state.h - shift) / safe * passing + mean, state.d * scale, state.weight * scale.abs() * passing)
