"""Walks a feed-forward network from its classifier down to its inputs, for a batch whose samples are separated first.

Formula: classifier: see ``separation.py``; activation: z = f^-1(h), d <- d * f'(z); linear layer: dW = sum_k d_k h_k^T, so that
H = pinv(D^T) dW, refitted on its zero sets behind a ReLU (``zero_sets.py``); convolution: see ``batch_convolution.py``.
Source: fedleak's own; for one sample the recursion of R-GAP (Zhu and Blaschko, arXiv 2010.07733).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedleak.attacks.exact.activations import Preimage, invertible, preimage
from fedleak.attacks.exact.batch_convolution import BatchConvolutionSystem, pass_down, solve_batch
from fedleak.attacks.exact.chain import ImagePrior, State, through_batchnorm
from fedleak.attacks.exact.convolution import Geometry
from fedleak.attacks.exact.count import LayerCount, count_convolution
from fedleak.attacks.exact.kinks import repair_kinks
from fedleak.attacks.exact.separation import Separation, separate
from fedleak.attacks.exact.zero_sets import refit
from fedleak.errors import AttackError
from fedleak.models.inspect import ExecutionOrder, LeafCall
from fedleak.observation import Tensors
from fedleak.seeding import Seed


@dataclass(frozen=True)
class BatchSolution:
    """What the walk arrives at.

    Attributes
    ----------
    inputs : Tensor
        (B, C, H, W) model inputs, float64.
    counts : tuple of LayerCount
        Of the convolutions, with the outputs that were in fact known.
    """

    inputs: Tensor
    counts: tuple[LayerCount, ...]


def separate_batch(
    order: ExecutionOrder, parameters: Tensors, gradient: Tensors, labels: Sequence[int], *, seed: Seed
) -> Separation:
    """Return the features of each sample at the classifier of ``order``.

    Raises
    ------
    AttackError
        If they cannot be told apart, or what is found does not satisfy the equations.
    """
    head = order.calls[-1].name
    if f"{head}.bias" not in parameters:
        raise AttackError("a batch is separated by its classifier's bias, and this one has none; use gradient matching")
    weights = parameters[f"{head}.weight"], parameters[f"{head}.bias"]
    gradients = gradient[f"{head}.weight"], gradient[f"{head}.bias"]
    found = separate(*weights, *gradients, labels, nonnegative=_behind_relu(order, len(order.calls) - 1), seed=seed)
    if not found.certified:
        raise AttackError(
            f"the samples' separation is not certified: the residual is {found.residual:.1e}, expected {found.threshold:.1e} at "
            "most; a label may be wrong, or there is a local minimum; use gradient matching, such as 'natural'"
        )
    return found


def walk_batch(
    order: ExecutionOrder,
    parameters: Tensors,
    buffers: Tensors,
    gradient: Tensors,
    separation: Separation,
    *,
    image: ImagePrior,
    out_of_time: Callable[[], bool] = lambda: False,
) -> BatchSolution:
    """Return the inputs of the batch behind ``gradient``, in the order of the separated samples.

    Parameters
    ----------
    order : ExecutionOrder
        Checked by :func:`fedleak.attacks.exact.chain.check_chain`.
    parameters, buffers, gradient : dict of str to Tensor
        By the model's names, float64, on one device.
    separation : Separation
        Of the samples at the classifier.
    image : ImagePrior
        What is known of any image before.
    out_of_time : callable
        Asked before each layer.

    Raises
    ------
    AttackError
        If a layer passes nothing on, or time runs out.
    """
    size = len(separation.features)
    derivatives = separation.derivatives / size @ parameters[f"{order.calls[-1].name}.weight"]
    state = State(separation.features, derivatives, torch.ones_like(derivatives))
    counts: list[LayerCount] = []
    for position in range(len(order.calls) - 2, -1, -1):
        call = order.calls[position]
        if out_of_time():
            raise AttackError(f"budget spent before layer '{call.name}'; raise budget_seconds")
        state = state.reshape((size, *call.output_shape))
        if isinstance(call.module, nn.Linear):
            state = _through_linear(call.name, state, parameters, gradient, sparse=_behind_relu(order, position))
        elif isinstance(call.module, nn.Conv2d):
            first = not any(isinstance(below.module, nn.Linear | nn.Conv2d) for below in order.calls[:position])
            state, counted = _through_convolution(call, state, parameters, gradient, image.center if first else None)
            counts.append(counted)
        elif isinstance(call.module, nn.BatchNorm1d | nn.BatchNorm2d):
            state = _channels_first(through_batchnorm(call, _channels_first(state), parameters, buffers))
        elif invertible(call.module):
            state = _through_activation(order, position, state, gradient)
        state = state.reshape((size, *call.input_shape))
        if not bool(torch.isfinite(state.h).all()):
            raise AttackError(f"the solution below layer '{call.name}' is not finite; use gradient matching")
    return BatchSolution(state.h, tuple(counts[::-1]))


def _behind_relu(order: ExecutionOrder, position: int) -> bool:
    """Say whether the layer takes a ReLU's output, at most reshaped."""
    for call in reversed(order.calls[:position]):
        if not isinstance(call.module, nn.Flatten | nn.Unflatten | nn.Identity | nn.Dropout | nn.Dropout2d):
            return isinstance(call.module, nn.ReLU)
    return False


def _channels_first(state: State) -> State:
    """Exchange the batch axis and the channel axis."""
    return State(*(tensor.transpose(0, 1) for tensor in (state.h, state.d, state.weight)))


def _through_linear(name: str, state: State, parameters: Tensors, gradient: Tensors, *, sparse: bool) -> State:
    weight, observed, sums = parameters[f"{name}.weight"], gradient[f"{name}.weight"], gradient.get(f"{name}.bias")
    if torch.linalg.matrix_rank(state.d, rtol=1e-9) < len(state.d):
        raise AttackError(f"the derivatives at linear layer '{name}' do not tell the samples apart; use gradient matching")
    h, d = torch.linalg.pinv(state.d.mT) @ observed, state.d
    if sparse and sums is not None:
        h, d = refit(h, d, observed, sums)
    return State(h, d @ weight, torch.ones_like(h))


def _through_activation(order: ExecutionOrder, position: int, state: State, gradient: Tensors) -> State:
    module, below = order.calls[position].module, order.calls[position - 1]
    h, d, weight = (tensor.transpose(0, 1) for tensor in (state.h, state.d, state.weight))
    back: Preimage = preimage(module, h)
    sums = gradient.get(f"{below.name}.bias")
    if position and sums is not None and isinstance(below.module, nn.Linear | nn.Conv2d | nn.BatchNorm2d):
        back = repair_kinks(module, back, h, d, sums)
    return _channels_first(State(back.z, d * back.slope, weight * back.weight))


def _through_convolution(
    call: LeafCall, state: State, parameters: Tensors, gradient: Tensors, center: Tensor | None
) -> tuple[State, LayerCount]:
    module = call.module
    assert isinstance(module, nn.Conv2d)
    geometry = Geometry.of(module, call.input_shape)
    assert geometry is not None
    size, bias = len(state.h), parameters.get(f"{call.name}.bias")
    z = state.h if bias is None else state.h - bias[:, None, None]
    kernel = parameters[f"{call.name}.weight"]
    system = BatchConvolutionSystem(geometry, kernel, state.weight, state.d, z, gradient[f"{call.name}.weight"])
    start = torch.zeros(geometry.input_shape, dtype=z.dtype, device=z.device) if center is None else center.to(z)
    u = solve_batch(system, start.expand(size, *geometry.input_shape))
    known = int((state.weight > 0).sum())
    counted = count_convolution(call.name, geometry, module.out_channels, known, size)
    return State(u, pass_down(kernel, state.d, geometry), torch.ones_like(u)), counted
