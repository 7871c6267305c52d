"""The input of a convolution from its output, its output's derivative and its weight gradient, as one linear system.

Formula: min_u |w * (K u + b - z)|^2 + |sum_l d_l u_patch(l)^T - dK|^2, both blocks scaled to unit noise, where z is the
output, w the weight of each of its entries (0: unknown), d = dLoss/dz and dK the gradient of the kernel K.
Source: the recursion of R-GAP (Zhu and Blaschko, arXiv 2010.07733), here as preconditioned least squares.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.exact.cholesky import cholesky_solve, shifted_cholesky, solve_lower, solve_upper
from fedleak.attacks.exact.prior import GaussianPrior

DENSE_LIMIT = 6200
"""Unknowns up to which the normal matrix is factored whole."""
_PIXEL_LIMIT = 4096
# Adding one number at an index takes about as long as so many floating-point operations of a matrix product.
_FLOPS_PER_SCATTER = 800
_TINY = 1e-300


@dataclass(frozen=True)
class Geometry:
    """Where the kernel of a convolution touches its input.

    Attributes
    ----------
    input_shape : tuple of int
        (C, H, W).
    kernel, stride, padding, dilation : tuple of int
        Of the convolution, for height and width.
    """

    input_shape: tuple[int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @classmethod
    def of(cls, module: nn.Conv2d, input_shape: tuple[int, ...]) -> Geometry | None:
        """Read ``module``; ``None`` if it is grouped, not zero-padded or padded unevenly."""
        channels, height, width = input_shape
        padding = (module._reversed_padding_repeated_twice[2], module._reversed_padding_repeated_twice[0])
        if isinstance(module.padding, str) and tuple(module._reversed_padding_repeated_twice[1::2]) != padding[::-1]:
            return None
        if module.groups != 1 or module.padding_mode != "zeros":
            return None
        kernel, stride, dilation = ((int(p[0]), int(p[1])) for p in (module.kernel_size, module.stride, module.dilation))
        return cls((channels, height, width), kernel, stride, padding, dilation)

    @property
    def taps(self) -> int:
        """Entries of the kernel for one pair of channels."""
        return self.kernel[0] * self.kernel[1]

    @property
    def pixels(self) -> int:
        """Entries of one input channel."""
        return self.input_shape[1] * self.input_shape[2]

    def unfold(self, u: Tensor) -> Tensor:
        """Return the patches (C * taps, L) of ``u`` (C * H * W)."""
        image = u.reshape(1, -1, *self.input_shape[1:])
        return functional.unfold(image, self.kernel, self.dilation, self.padding, self.stride)[0]

    def fold(self, patches: Tensor) -> Tensor:
        """Add patches (C * taps, L) up into (C * H * W): the adjoint of :meth:`unfold`."""
        size = self.input_shape[1:]
        return functional.fold(patches[None], size, self.kernel, self.dilation, self.padding, self.stride).reshape(-1)

    def pixel_of(self, device: torch.device) -> Tensor:
        """Return which pixel (from 0; -1 is padding) each tap touches at each output: (taps, L)."""
        number = torch.arange(1, self.pixels + 1, dtype=torch.float64, device=device)
        return self.unfold(number).long() - 1


@dataclass(frozen=True)
class ConvolutionSystem:
    """The stacked linear system for the input of one convolution, for one image; all tensors float64.

    Attributes
    ----------
    geometry : Geometry
        Of the convolution.
    kernel : Tensor
        (O, C * taps).
    weight : Tensor
        (O, L): how far each forward equation counts; 0 where the output is unknown.
    d : Tensor
        (O, L): derivative of the loss by the convolution's output.
    z : Tensor
        (O, L): output less the bias.
    gradient : Tensor
        (O, C * taps): gradient of the kernel.
    prior : GaussianPrior, optional
        On the distance of the solution from its start.
    known : Tensor, optional
        (O, C * taps), 1 or 0: which entries of the gradient are equations; all by default.
    """

    geometry: Geometry
    kernel: Tensor
    weight: Tensor
    d: Tensor
    z: Tensor
    gradient: Tensor
    prior: GaussianPrior | None = None
    known: Tensor | None = None

    @cached_property
    def rows(self) -> Tensor:
        """Forward weights with the equations scaled to rows of unit size, (O, L)."""
        return self.weight / (self.kernel.square().sum() / len(self.kernel)).sqrt().clamp_min(_TINY)

    @cached_property
    def scale(self) -> Tensor:
        """Factor that brings the weight-gradient equations to rows of unit size."""
        return 1 / (self.d.square().sum() / len(self.d)).sqrt().clamp_min(_TINY)

    def apply(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return both blocks of the system's left side at ``u`` (C * H * W)."""
        patches = self.geometry.unfold(u)
        return (self.kernel @ patches) * self.rows, self._kept(self.d @ patches.mT) * self.scale

    def adjoint(self, forward: Tensor, backward: Tensor) -> Tensor:
        """Return the transposed system applied to the two blocks."""
        return self.geometry.fold(self.kernel.mT @ (forward * self.rows) + (self._kept(backward) * self.scale).mT @ self.d)

    def target(self) -> tuple[Tensor, Tensor]:
        """Return the system's right side."""
        return self.z * self.rows, self._kept(self.gradient) * self.scale

    def _kept(self, backward: Tensor) -> Tensor:
        return backward if self.known is None else backward * self.known

    def residual(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return the right side less the left side at ``u``."""
        (forward, backward), (z, gradient) = self.apply(u), self.target()
        return z - forward, gradient - backward

    def penalty(self, offset: Tensor) -> Tensor:
        """Return the prior's precision matrix times an offset from the start (C * H * W)."""
        if self.prior is None:
            return torch.zeros_like(offset)
        return self.prior.apply(offset.view(self.geometry.input_shape)).reshape(-1)


class Preconditioner(Protocol):
    """An approximate inverse of the normal matrix."""

    def __call__(self, s: Tensor) -> Tensor:
        """Apply it to (C * H * W)."""


def solve(system: ConvolutionSystem, start: Tensor, *, tolerance: float = 1e-10, iterations: int = 40) -> Tensor:
    """Return the least-squares solution nearest to ``start``, by conjugate gradients in float64.

    Parameters
    ----------
    system : ConvolutionSystem
        What to solve.
    start : Tensor
        (C * H * W); directions that no equation sees keep its value.
    tolerance : float
        On the norm of the preconditioned normal residual, relative to the right side's.
    iterations : int
        At most so many; ten times as many where the preconditioner is only a rough one.

    Returns
    -------
    Tensor
        (C * H * W).
    """
    precondition, exact = preconditioner(system)
    u = start.clone()
    residual = system.residual(u)
    s = system.adjoint(*residual)
    full = system.adjoint(*system.target())
    reference = float(full @ precondition(full))
    p = z = precondition(s)
    gamma = float(s @ z)
    for _ in range(iterations if exact and system.known is None else 10 * iterations):
        if gamma <= tolerance**2 * reference:
            break
        q = system.apply(p)
        curvature = float(q[0].square().sum()) + float(q[1].square().sum()) + float(p @ system.penalty(p))
        alpha = gamma / (curvature + _TINY)
        u = u + alpha * p
        residual = (residual[0] - alpha * q[0], residual[1] - alpha * q[1])
        s, before = system.adjoint(*residual) - system.penalty(u - start), s
        z = precondition(s)
        # The flexible form of beta stands rounding in a float32 preconditioner.
        beta = max(float((s - before) @ z) / gamma, 0.0)
        gamma = float(s @ z)
        p = z + beta * p
    return u


def preconditioner(system: ConvolutionSystem) -> tuple[Preconditioner, bool]:
    """Return the cheapest good preconditioner, and whether it is exact up to rounding and a small shift."""
    unknowns = system.geometry.input_shape[0] * system.geometry.pixels
    equations = system.z.numel()
    if (
        system.known is None
        and equations <= unknowns // 2
        and equations <= DENSE_LIMIT
        and system.geometry.pixels <= _PIXEL_LIMIT
    ):
        return _Dual(system), True
    if unknowns <= DENSE_LIMIT:
        return _Primal(system), True
    if system.geometry.pixels <= _PIXEL_LIMIT:
        return _Shared(system), False
    return _Diagonal(system), False


class _Primal:
    """Float32 factor of the whole normal matrix."""

    def __init__(self, system: ConvolutionSystem) -> None:
        channels, pixels = system.geometry.input_shape[0], system.geometry.pixels
        pixel = system.geometry.pixel_of(system.d.device)
        normal = _forward_normal(system, pixel)
        shared = _shared_normal(system, pixel, torch.float32) if system.known is None else None
        blocks = normal.view(channels, pixels, channels, pixels)
        for channel in range(channels):
            blocks[channel, :, channel] += _channel_normal(system, pixel, channel) if shared is None else shared
        self._factor = shifted_cholesky(normal, (3e-7, 3e-6, 3e-5, 3e-4))

    def __call__(self, s: Tensor) -> Tensor:
        norm = s.abs().max().clamp_min(_TINY)
        return cholesky_solve(self._factor, (s / norm).float()[:, None])[:, 0].double() * norm


class _Dual:
    """Woodbury's identity over the weight-gradient block, for few forward equations.

    With G = D^T D + shift, one matrix for all channels: (G (x) I + F^T F)^-1 = G^-1 - G^-1 F^T (I + F G^-1 F^T)^-1 F G^-1.
    """

    def __init__(self, system: ConvolutionSystem) -> None:
        pixel = system.geometry.pixel_of(system.d.device)
        self._channels = system.geometry.input_shape[0]
        self._inner = shifted_cholesky(_shared_normal(system, pixel, torch.float64), (1e-9, 1e-8, 1e-7, 1e-6))
        forward = _forward_matrix(system, pixel)
        flat = forward.reshape(-1, forward.shape[-1])
        self._root = solve_lower(self._inner, flat.mT).mT.reshape(len(forward), -1)
        outer = self._root @ self._root.mT
        outer.diagonal().add_(1.0)
        self._outer = shifted_cholesky(outer, (0.0, 1e-12))

    def __call__(self, s: Tensor) -> Tensor:
        t = solve_lower(self._inner, s.reshape(self._channels, -1).mT).mT.reshape(-1)
        y = cholesky_solve(self._outer, (self._root @ t)[:, None])[:, 0]
        t = (t - y @ self._root).reshape(self._channels, -1).mT
        return solve_upper(self._inner, t).mT.reshape(-1)


class _Shared:
    """One factor for all channels: the weight-gradient block plus the mean diagonal of the forward block."""

    def __init__(self, system: ConvolutionSystem) -> None:
        pixel = system.geometry.pixel_of(system.d.device)
        self._channels = system.geometry.input_shape[0]
        matrix = _shared_normal(system, pixel, torch.float64)
        matrix.diagonal().add_(_forward_diagonal(system).reshape(self._channels, -1).mean(0))
        self._factor = shifted_cholesky(matrix, (1e-12, 1e-10, 1e-8, 1e-6))

    def __call__(self, s: Tensor) -> Tensor:
        return cholesky_solve(self._factor, s.reshape(self._channels, -1).mT).mT.reshape(-1)


class _Diagonal:
    """The diagonal of the normal matrix, for inputs too large for any factor."""

    def __init__(self, system: ConvolutionSystem) -> None:
        energy = (system.d * system.scale).square().sum(0)
        channels = system.geometry.input_shape[0]
        backward = system.geometry.fold(energy.expand(channels * system.geometry.taps, -1))
        diagonal = _forward_diagonal(system) + backward + (system.prior.diagonal() if system.prior else 0.0)
        self._inverse = 1 / (diagonal + 1e-12 * diagonal.mean() + _TINY)

    def __call__(self, s: Tensor) -> Tensor:
        return s * self._inverse


def _channel_normal(system: ConvolutionSystem, pixel: Tensor, channel: int) -> Tensor:
    """Return one input channel's part of the normal matrix where it has equations of its own, (H * W, H * W), float32."""
    assert system.known is not None
    kept = system.known.view(len(system.d), system.geometry.input_shape[0], -1)[:, channel].reshape(-1) > 0
    derivative = _derivative_matrix(system, pixel)[kept].float()
    normal = derivative.mT @ derivative
    if system.prior is not None:
        normal += system.prior.matrix(*system.geometry.input_shape[1:], like=normal)
    return normal


def _shared_normal(system: ConvolutionSystem, pixel: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the part of the normal matrix that all input channels share: weight-gradient equations and prior, (H * W, H * W)."""
    derivative = _derivative_matrix(system, pixel).to(dtype)
    normal = derivative.mT @ derivative
    if system.prior is not None:
        normal += system.prior.matrix(*system.geometry.input_shape[1:], like=normal)
    return normal


def _forward_diagonal(system: ConvolutionSystem) -> Tensor:
    return system.geometry.fold(system.kernel.square().mT @ system.rows.square())


def _forward_normal(system: ConvolutionSystem, pixel: Tensor) -> Tensor:
    """Return the forward equations' part of the normal matrix, (C * H * W, C * H * W), float32."""
    channels, pixels = system.geometry.input_shape[0], system.geometry.pixels
    unknowns, (outputs, places), patch = channels * pixels, system.z.shape, system.kernel.shape[1]
    scattered, multiplied = places * patch**2, 2 * outputs * places * unknowns**2
    if scattered * _FLOPS_PER_SCATTER > multiplied:
        forward = _forward_matrix(system, pixel).reshape(-1, unknowns).float()
        return forward.mT @ forward
    # Each output sees one patch: its Gram matrix is added up at the pixels of that patch.
    inside = (pixel >= 0).float().mT.repeat(1, channels)
    weighted = system.kernel.float() * inside[:, None] * system.rows.float().mT[:, :, None]
    grams = weighted.mT @ weighted
    offsets = torch.arange(channels, device=pixel.device)[:, None] * pixels
    row = (offsets + pixel.clamp_min(0).mT[:, None, :]).reshape(places, -1)
    normal = grams.new_zeros(unknowns**2)
    normal.index_add_(0, (row[:, :, None] * unknowns + row[:, None, :]).reshape(-1), grams.reshape(-1))
    return normal.view(unknowns, unknowns)


def _derivative_matrix(system: ConvolutionSystem, pixel: Tensor) -> Tensor:
    """Return the weight-gradient equations of one input channel, (O * taps, H * W); all channels share them."""
    outputs = len(system.d)
    tap, place = torch.nonzero(pixel >= 0, as_tuple=True)
    matrix = system.d.new_zeros(outputs, len(pixel), system.geometry.pixels)
    matrix[:, tap, pixel[tap, place]] = (system.d * system.scale)[:, place]
    return matrix.reshape(-1, system.geometry.pixels)


def _forward_matrix(system: ConvolutionSystem, pixel: Tensor) -> Tensor:
    """Return the forward equations, (O * L, C, H * W)."""
    geometry, (outputs, places) = system.geometry, system.z.shape
    channels = geometry.input_shape[0]
    tap, place = torch.nonzero(pixel >= 0, as_tuple=True)
    kernel = system.kernel.view(outputs, channels, -1)
    matrix = system.d.new_zeros(outputs, places, channels, geometry.pixels)
    entries = kernel[:, :, tap] * system.rows[:, None, place]
    matrix.permute(0, 2, 1, 3)[:, :, place, pixel[tap, place]] = entries
    return matrix.reshape(outputs * places, channels, geometry.pixels)
