"""Images whose layers have fewer equations than unknowns: Gauss-Newton on all the gradients, the separated features as data.

Formula: min_v sum_l |g_l(x) - g_l|^2 / |g_l|^2 + |z(x) - z|^2 / (n var z) + |max(-p, p - 1, 0)|^2 / n + lambda |v|^2 / n,
pixels p = decode(v), z the separated inputs of the last activation, lambda falling; steps by conjugate gradients on J^T J.
Source: fedleak's own; the coordinates v are cosine frequencies of opponent colours, see ``attacks/images/coordinates.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vjp

from fedleak.attacks.base import Budget
from fedleak.attacks.exact.activations import invertible, preimage
from fedleak.attacks.exact.separation import Separation
from fedleak.attacks.images.coordinates import FrequencyCoordinates
from fedleak.models.inspect import ExecutionOrder
from fedleak.observation import Observation, Tensors

_PENALTIES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
_STEPS = 2
"""Gauss-Newton steps for each penalty."""
_PRODUCTS, _GROWTH, _MOST_PRODUCTS = 30, 1.3, 400
"""Conjugate gradient iterations of a step, their growth from penalty to penalty, and at most."""
_LENGTHS = (1.0, 0.5, 0.25, 0.1)
_INNER = 1e-6
_SLIGHT = 0.03

Residual = Callable[[Tensor], tuple[Tensor, ...]]


class BodyResiduals:
    """What a guess of the images leaves unexplained, as a function of their frequency coordinates (B, C, H, W).

    Parameters
    ----------
    observation : Observation
        Gives parameters, buffers and the input description.
    order : ExecutionOrder
        A chain that ends in the classifier.
    gradient : dict of str to Tensor
        Observed.
    separation : Separation
        Of the samples at the classifier.
    """

    def __init__(self, observation: Observation, order: ExecutionOrder, gradient: Tensors, separation: Separation) -> None:
        *self._calls, head = order.calls
        self._modules = [copy.deepcopy(call.module).eval() for call in self._calls]
        like = separation.features.float()
        size, self.shape = len(like), (len(like), *observation.input.shape)
        parameters = {name: value.detach().to(like) for name, value in observation.parameters.items()}
        self._buffers = {
            name: value.to(like) if value.is_floating_point() else value.to(like.device)
            for name, value in observation.buffers.items()
        }
        self._derivatives = (separation.derivatives / size).to(like) @ parameters.pop(f"{head.name}.weight")
        parameters.pop(f"{head.name}.bias", None)
        self._parameters = parameters
        self._gradient = {name: gradient[name].to(like) for name in parameters}
        self._scale = {name: 1 / value.norm().clamp_min(1e-30) for name, value in self._gradient.items()}
        self._input, self._coordinates = observation.input, FrequencyCoordinates(observation.input, like)
        self._set_features(separation.features)

    def __call__(self, v: Tensor) -> tuple[Tensor, ...]:
        """Return the residuals at ``v``: of features, of each parameter's gradient, and of pixels beyond [0, 1]."""
        pixels = self._coordinates.decode(v)
        inputs = self._input.normalize(pixels)
        (_, z), pull = _vjp(partial(self._body, inputs), self._parameters)
        (found,) = pull((self._derivatives.view_as(self._h), torch.zeros_like(z)))
        gradients = [(value - self._gradient[name]) * self._scale[name] for name, value in found.items()]
        outside = (pixels - pixels.clamp(0, 1)) / v.numel() ** 0.5
        return ((z - self._z) * self._weight, *gradients, outside)

    def images(self, v: Tensor) -> Tensor:
        """Return the model inputs that ``v`` stands for."""
        return self._input.normalize(self._coordinates.decode(v))

    def _set_features(self, features: Tensor) -> None:
        """Take the last activation's inputs for data, which are linear in the layer below; where not known, they do not count."""
        self._last = max((n for n, module in enumerate(self._modules) if invertible(module)), default=-1)
        self._h = features.view(len(features), *self._calls[-1].output_shape)
        z, weight = self._h, torch.ones_like(self._h)
        if self._last >= 0 and all(prod(call.output_shape) == z[0].numel() for call in self._calls[self._last :]):
            back = preimage(self._modules[self._last], self._h)
            z, weight = back.z, (back.weight > 0).to(z)
        else:
            self._last = -1
        count = weight.sum().clamp_min(1)
        spread = (((z - (z * weight).sum() / count) * weight).square().sum()).sqrt().clamp_min(1e-30)
        self._z, self._weight, self._h = z.float(), (weight / spread).float(), self._h.float()

    def _body(self, x: Tensor, parameters: Tensors) -> tuple[Tensor, Tensor]:
        """Return the classifier's inputs, and the data: inputs of the last activation."""
        data = x
        for number, (call, module) in enumerate(zip(self._calls, self._modules, strict=True)):
            x = x.reshape(len(x), *call.input_shape)
            data = x if number == self._last else data
            state = {**parameters, **self._buffers}
            own = {name.removeprefix(f"{call.name}."): t for name, t in state.items() if name.startswith(f"{call.name}.")}
            x = functional_call(module, own, (x,))
        data = x if self._last < 0 else data
        return x.reshape(self._h.shape), data.reshape(self._z.shape)


def fit(
    observation: Observation, order: ExecutionOrder, gradient: Tensors, separation: Separation, budget: Budget
) -> tuple[Tensor, int]:
    """Return model inputs (B, C, H, W), float64, that explain the gradients and the features, and the products with J spent.

    Parameters
    ----------
    observation : Observation
        Of a batch.
    order : ExecutionOrder
        A chain that ends in the classifier.
    gradient : dict of str to Tensor
        Observed, by parameter name.
    separation : Separation
        Of the samples at the classifier.
    budget : Budget
        Of CPU seconds; the best so far is returned when it is spent.
    """
    residual = BodyResiduals(observation, order, gradient, separation)
    v = torch.zeros(residual.shape, device=separation.features.device)
    products, most = 0, float(_PRODUCTS)
    for penalty in _PENALTIES:
        damping = 0.0
        for _ in range(_STEPS):
            if budget.exhausted:
                break
            step, spent = gauss_newton_step(residual, v, penalty / v.numel(), damping, int(most), budget)
            products += spent
            before = _cost(residual(v), v, penalty)
            attempts = ((v + length * step, length) for length in _LENGTHS)
            better = next(((at, length) for at, length in attempts if _cost(residual(at), at, penalty) < before), None)
            if better is None:
                damping = max(5 * damping, penalty / v.numel())
                continue
            v, damping = better[0], damping * 0.3 if better[1] == 1 else damping
            after = _cost(residual(v), v, penalty)
            budget.tick(products, after)
            if before - after < _SLIGHT * before:
                break
        most = min(most * _GROWTH, _MOST_PRODUCTS)
    return residual.images(v).double(), products


def gauss_newton_step(
    residual: Residual, v: Tensor, penalty: float, damping: float, most: int, budget: Budget
) -> tuple[Tensor, int]:
    """Return the solution s of (J^T J + penalty + damping) s = -J^T r - penalty v, roughly, and the products it took."""
    values, transposed, product = jacobian(residual, v)
    rest = -transposed(values) - penalty * v
    step, direction = torch.zeros_like(v), rest
    energy = first = (rest * rest).sum()
    spent = 0
    while spent < most:
        spent += 1
        image = transposed(product(direction)) + (penalty + damping) * direction
        length = energy / (direction * image).sum().clamp_min(1e-38)
        step, rest = step + length * direction, rest - length * image
        after = (rest * rest).sum()
        direction, energy = rest + after / energy * direction, after
        if float(energy) < _INNER * float(first) or budget.exhausted:
            break
    return step, spent


def jacobian(
    residual: Residual, v: Tensor
) -> tuple[tuple[Tensor, ...], Callable[[tuple[Tensor, ...]], Tensor], Callable[[Tensor], tuple[Tensor, ...]]]:
    """Return the residuals at ``v``, and the products with the transposed Jacobian and with the Jacobian there.

    The transposed product is linear in its argument, so that the derivative of it, transposed, is the Jacobian: one graph
    serves both, and nothing is computed twice.
    """
    values, pull = _vjp(residual, v)
    _, push = _vjp(lambda cotangents: pull(cotangents)[0], tuple(torch.zeros_like(value) for value in values))
    return values, lambda cotangents: pull(cotangents)[0], lambda tangent: push(tangent)[0]


def _vjp(function: Callable[[Any], Any], at: Any) -> tuple[Any, Callable[[Any], Any]]:
    value, pull = vjp(function, at)[:2]
    return value, pull


def _cost(values: tuple[Tensor, ...], v: Tensor, penalty: float) -> float:
    total = sum(float(value.double().square().sum()) for value in values)
    return total + penalty * float(v.double().square().mean())
