"""The inputs of a convolution for a whole batch: each sample's forward equations and the kernel's gradient, in one linear system.

Formula: min_u sum_k |w_k * (K u_k + b - z_k)|^2 + |sum_k sum_l d_kl u_k,patch(l)^T - dK|^2, both blocks scaled to unit noise.
Source: fedleak's own; the system of ``convolution.py`` with the samples stacked. Solved by conjugate gradients and a Cholesky
preconditioner in float32, repeated on residuals in float64, which is about three times as fast as float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from fedleak.attacks.exact.cholesky import cholesky_solve, shifted_cholesky
from fedleak.attacks.exact.convolution import Geometry

FACTOR_LIMIT = 2100
"""Pixels of the whole batch up to which one factor preconditions all channels."""
_TINY = 1e-30
_INNER = 1e-3
"""Relative residual of the normal equations at which float32 has done its part."""
_ITERATIONS = 300
_PASSES = 6
_STALLED = 0.6
"""A pass that leaves more than this part of the residual is the last."""
_NOISE_FLOOR = 1e-8

Blocks = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BatchConvolutionSystem:
    """The stacked linear system for the inputs of one convolution; all tensors of one floating type.

    Attributes
    ----------
    geometry : Geometry
        Of the convolution.
    kernel : Tensor
        (O, C, kH, kW).
    weight : Tensor
        (B, O, H', W'): how far each forward equation counts; 0 where the output is unknown.
    d : Tensor
        (B, O, H', W'): derivative of the mean loss by the convolution's output.
    z : Tensor
        (B, O, H', W'): output less the bias.
    gradient : Tensor
        (O, C, kH, kW): gradient of the kernel.
    """

    geometry: Geometry
    kernel: Tensor
    weight: Tensor
    d: Tensor
    z: Tensor
    gradient: Tensor

    def scaled(self) -> BatchConvolutionSystem:
        """Return the same equations with the rows of both blocks brought to unit size."""
        outputs = len(self.kernel)
        forward = (self.kernel.square().sum() / outputs).sqrt().clamp_min(_TINY)
        backward = (self.d.square().sum() / outputs).sqrt().clamp_min(_TINY)
        return BatchConvolutionSystem(
            self.geometry, self.kernel, self.weight / forward, self.d / backward, self.z, self.gradient / backward
        )

    def single(self) -> BatchConvolutionSystem:
        """Return the same system in float32."""
        parts = (tensor.float() for tensor in (self.kernel, self.weight, self.d, self.z, self.gradient))
        return BatchConvolutionSystem(self.geometry, *parts)

    def apply(self, u: Tensor) -> Blocks:
        """Return both blocks of the left side at ``u`` (B, C, H, W)."""
        g = self.geometry
        forward = functional.conv2d(u, self.kernel, None, g.stride, g.padding, g.dilation) * self.weight
        return forward, _correlate(u, self.kernel, self.d, g)

    def adjoint(self, blocks: Blocks) -> Tensor:
        """Return the transposed system applied to the two blocks, (B, C, H, W)."""
        forward = pass_down(self.kernel, blocks[0] * self.weight, self.geometry)
        return forward + pass_down(blocks[1], self.d, self.geometry)

    def residual(self, u: Tensor) -> Blocks:
        """Return the right side less the left side at ``u``."""
        forward, backward = self.apply(u)
        return self.z * self.weight - forward, self.gradient - backward


def pass_down(kernel: Tensor, d: Tensor, geometry: Geometry) -> Tensor:
    """Return the derivative of the loss by the convolution's inputs (B, C, H, W) from that by its outputs."""
    shape = (len(d), kernel.shape[1], *geometry.input_shape[1:])
    return conv2d_input(shape, kernel, d, geometry.stride, geometry.padding, geometry.dilation)  # type: ignore[no-any-return,no-untyped-call]


def _correlate(u: Tensor, kernel: Tensor, d: Tensor, geometry: Geometry) -> Tensor:
    shape, arguments = kernel.shape, (geometry.stride, geometry.padding, geometry.dilation)
    return conv2d_weight(u, shape, d, *arguments)  # type: ignore[no-any-return,no-untyped-call]


def solve_batch(system: BatchConvolutionSystem, start: Tensor) -> Tensor:
    """Return the least-squares solution (B, C, H, W) near ``start``, float64.

    Parameters
    ----------
    system : BatchConvolutionSystem
        In float64.
    start : Tensor
        (B, C, H, W), float64; directions that no equation sees keep its value.
    """
    exact = system.scaled()
    rough = exact.single()
    precondition = _preconditioner(exact)
    u = start.clone()
    first = _norm((exact.z * exact.weight, exact.gradient))
    before = float("inf")
    for _ in range(_PASSES):
        residual = exact.residual(u)
        size = _norm(residual)
        if size > _STALLED * before or size <= _NOISE_FLOOR * first:
            break
        before = size
        u = u + size * _least_squares(rough, precondition, _single(residual, size)).double()
    return u


def _least_squares(system: BatchConvolutionSystem, precondition: Callable[[Tensor], Tensor], residual: Blocks) -> Tensor:
    """Return the solution for the right side ``residual`` by preconditioned conjugate gradients on the normal equations."""
    u = torch.zeros(len(system.d), *system.geometry.input_shape, dtype=residual[0].dtype, device=residual[0].device)
    s = system.adjoint(residual)
    p = z = precondition(s)
    gamma = first = float((s * z).sum())
    for _ in range(_ITERATIONS):
        q = system.apply(p)
        alpha = gamma / max(_norm(q) ** 2, _TINY)
        u = u + alpha * p
        residual = (residual[0] - alpha * q[0], residual[1] - alpha * q[1])
        s = system.adjoint(residual)
        z = precondition(s)
        after = float((s * z).sum())
        if after <= _INNER**2 * first:
            break
        p, gamma = z + after / gamma * p, after
    return u


def _preconditioner(system: BatchConvolutionSystem) -> Callable[[Tensor], Tensor]:
    """Return an approximate inverse of the normal matrix, for float32 arguments.

    The kernel-gradient equations are the same for all input channels and couple the samples; the forward equations enter
    by their mean diagonal.
    """
    (channels, _, _), size = system.geometry.input_shape, len(system.d)
    flat = system.kernel.square().sum(1, keepdim=True) / channels
    g = system.geometry
    diagonal = pass_down(flat, system.weight.square(), g)
    if size * g.pixels > FACTOR_LIMIT:
        ones = torch.ones_like(system.gradient[:, :1])
        energy = pass_down(ones, system.d.square(), g)
        inverse = 1 / (diagonal + energy).clamp_min(1e-9 * diagonal.mean()).float()
        return lambda s: s * inverse
    derivative = torch.cat([_derivative_matrix(g, d.flatten(1)) for d in system.d.float()], dim=1)
    normal = derivative.mT @ derivative
    normal.diagonal().add_(diagonal.flatten().float())
    factor = shifted_cholesky(normal, (1e-7, 1e-6, 1e-5, 1e-4))

    def precondition(s: Tensor) -> Tensor:
        columns = s.transpose(0, 1).reshape(channels, -1).mT
        return cholesky_solve(factor, columns).mT.reshape(channels, size, *g.input_shape[1:]).transpose(0, 1).contiguous()

    return precondition


def _derivative_matrix(geometry: Geometry, d: Tensor) -> Tensor:
    """Return the kernel-gradient equations of one input channel of one sample, (O * taps, H * W), for ``d`` (O, L)."""
    pixel = geometry.pixel_of(d.device)
    tap, place = torch.nonzero(pixel >= 0, as_tuple=True)
    matrix = d.new_zeros(len(d), len(pixel), geometry.pixels)
    matrix[:, tap, pixel[tap, place]] = d[:, place]
    return matrix.reshape(-1, geometry.pixels)


def _norm(blocks: Blocks) -> float:
    return math.sqrt(float(blocks[0].square().sum() + blocks[1].square().sum()))


def _single(blocks: Blocks, size: float) -> Blocks:
    return (blocks[0] / size).float(), (blocks[1] / size).float()
