"""One image behind a network that adds a learned position to each patch, such as a vision transformer: linear algebra, any depth.

Formula: tokens e_p = W x_p + b + P_p, so dL/dP_p = d_p is the signal of patch p itself, dW = sum_p d_p x_p^T and db = sum_p d_p:
X = lstsq(dP^T, dW) whatever follows, ridged by the noise that the equations left over show.
Source: fedleak's own; kin to APRIL (Lu et al., arXiv 2112.14087), which solves for the embedding through the first attention.

One image's patches are the same in each local step, so sums of signals over steps satisfy the same equations: the moves of the
weights under plain SGD do. Optimisers that scale entries one by one break them, and the equations left over say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fedleak.attacks.exact.interception import FoundError, watch
from fedleak.modalities.image import InputSpec
from fedleak.observation import Tensors
from fedleak.seeding import Seed

_FURTHER = 16
"""Tokens before the patches' (class, distillation, registers) among which they are looked for."""
_SAME = 1e-4
"""Difference up to which values that a forward pass shows are taken for equal, relative to the largest."""
_ROUNDING = 6e-8
"""Half a unit in the last place of float32, relative to the value."""
_CONTRADICTION = 1e-2
"""Residual of the equations, relative to the gradient, from which something else than one image and rounding is behind it."""


@dataclass(frozen=True)
class PatchPositions:
    """Where a network turns patches into tokens, and adds a learned position to each.

    Attributes
    ----------
    weight, bias : str and str or None
        Names of the embedding's parameters: O features a token, from K pixels a patch.
    positions : str
        Name of the table of positions.
    rows : slice
        Which of its rows, of O entries each, are the T patches'.
    across : bool
        Whether the table holds features before places, (1, O, rows, columns).
    order : Tensor
        (T, K), int64: which entry of the flattened image each entry of each patch is.
    """

    weight: str
    bias: str | None
    positions: str
    rows: slice
    across: bool
    order: Tensor

    @property
    def patches(self) -> int:
        """How many patches an image has."""
        return len(self.order)

    def signals(self, gradient: Tensors) -> Tensor:
        """Return (T, O), the gradient by each patch's position."""
        return _rows(gradient[self.positions], self.across, gradient[self.weight].shape[0])[self.rows].double()


@dataclass(frozen=True)
class PatchSolution:
    """What the equations of the patch embedding give.

    Attributes
    ----------
    input : Tensor
        (C, H, W) model input, float64.
    residual : float
        Norm of what the equations leave over, relative to the gradient's: the certificate. Rounding alone for one image.
    rank : int
        Of the positions' gradient; as many as patches where the image is the only solution.
    condition : float
        Its largest singular value over its smallest.
    contradicted : bool
        Whether the residual is more than the rounding of the numbers sent explains.
    """

    input: Tensor
    residual: float
    rank: int
    condition: float
    contradicted: bool


def find_positions(model: nn.Module, input: InputSpec) -> PatchPositions | None:
    """Return where ``model`` adds learned positions to patches, or ``None`` if it does so nowhere that can be seen.

    It is found by values, not by names: a forward pass of one random image runs up to the first module that is handed the
    embedding's output with a parameter added to it, and ends there.
    """
    parameters: Tensors = dict(model.named_parameters())
    names = {id(module): name for name, module in model.named_modules()}
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and _cuts(module):
            width, taken = module.out_channels, module.in_channels * prod(module.kernel_size)
        elif isinstance(module, nn.Linear):
            width, taken = module.out_features, module.in_features
        else:
            continue
        if prod(input.shape) % taken:
            continue
        patches = prod(input.shape) // taken
        tables = {name: value for name, value in parameters.items() if _fits(value, width, patches)}
        name = names[id(module)]
        if tables and f"{name}.weight" in parameters and (found := _probe(model, module, name, tables, input)) is not None:
            return found
    return None


def solve_patches(found: PatchPositions, gradient: Tensors, input: InputSpec, noise: Tensors | None = None) -> PatchSolution:
    """Return the image behind ``gradient``.

    Parameters
    ----------
    found : PatchPositions
        Of :func:`find_positions`.
    gradient : dict of str to Tensor
        By parameter, in any scale.
    input : InputSpec
        What the model takes.
    noise : dict of str to Tensor, optional
        Standard deviation of each entry's error, where it is more than the rounding of the gradient itself: of weights that
        were rounded after the gradient was taken from them.
    """
    signals = found.signals(gradient)
    weight = gradient[found.weight].double().flatten(1)
    grey = input.normalize(torch.full((1, *input.shape), 0.5, dtype=torch.float64, device=weight.device)).flatten()
    center = grey[found.order.to(weight.device)]
    left, values, right = torch.linalg.svd(signals.T, full_matrices=False)  # (O, T), (T,), (T, T)
    target = weight - signals.T @ center
    along = left.T @ target
    spare = weight.shape[0] - found.patches
    spread = 0.25 * len(input.std) / sum(input.std)
    floor = _floor(found, gradient, noise)
    size = float(weight.square().sum())
    tiny = float(values[0]) * 1e-12
    ridge = (floor / spread) ** 2
    for _ in range(2):
        solved = center + right.T @ ((values / (values.square() + max(ridge, tiny**2)))[:, None] * along)
        left_over = float((weight - signals.T @ solved).square().sum())
        if spare > 0:
            ridge = left_over / (spare * weight.shape[1] * spread**2)
    flat = torch.zeros(prod(input.shape), dtype=torch.float64, device=weight.device)
    flat[found.order.to(weight.device).flatten()] = solved.flatten()
    expected = floor**2 * weight.numel()
    seen = bool(left_over > (_CONTRADICTION**2) * size and left_over > 25 * expected)
    return PatchSolution(
        input=flat.view(input.shape),
        residual=(left_over / size) ** 0.5,
        rank=int((values > values[0] * 1e-7).sum()),
        condition=float(values[0] / values[-1].clamp_min(1e-300)),
        contradicted=seen,
    )


def _floor(found: PatchPositions, gradient: Tensors, noise: Tensors | None) -> float:
    """Return the root mean square error of an equation: of both sides, the pixels taken as large as a model's inputs are."""
    names = (found.weight, found.positions)
    errors = noise or {name: _ROUNDING * gradient[name] for name in names}
    weight, positions = (float(errors[name].detach().double().square().mean()) for name in names)
    return float((weight + found.patches * positions) ** 0.5)


def _fits(table: Tensor, width: int, patches: int) -> bool:
    """Whether a parameter has the shape of a table of positions for so many patches, and a few tokens beside."""
    places = max(len(_rows(table, across, width)) for across in (False, True)) if table.ndim >= 2 else 0
    return patches <= places <= patches + _FURTHER


def _cuts(module: nn.Conv2d) -> bool:
    """Whether a convolution cuts its input into patches that do not overlap, each read whole."""
    plain = module.groups == 1 and set(module.dilation) == {1} and module.padding in ((0, 0), "valid")
    return plain and tuple(module.kernel_size) == tuple(module.stride)


@dataclass
class _Probe:
    """Looks on a forward pass for the embedding's output with a parameter added to it."""

    name: str
    module: nn.Module
    tables: Tensors
    input: InputSpec
    image: Tensor
    tokens: Tensor | None = None
    order: Tensor | None = None
    found: PatchPositions | None = None

    def embedded(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Keep the tokens (T, O), and the order of the pixels in the patches."""
        if self.tokens is not None or not isinstance(output, Tensor) or not args or not isinstance(args[0], Tensor):
            return
        self.order = _pixel_order(module, args[0], self.image, self.input)
        if self.order is None:
            raise FoundError  # something else than cut pixels reaches it
        width = module.out_channels if isinstance(module, nn.Conv2d) else output.shape[-1]
        self.tokens = output.flatten(2)[0].T if isinstance(module, nn.Conv2d) else output.reshape(-1, int(width))

    def entered(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compare what a module is handed with tokens and tables."""
        if self.tokens is None or module is self.module:
            return
        count, width = self.tokens.shape
        for value in (*args, *kwargs.values()):
            if not isinstance(value, Tensor) or value.ndim not in (3, 4) or value.shape[0] != 1 or not value.is_floating_point():
                continue
            seen = value[0] if value.ndim == 3 and value.shape[-1] == width else value.flatten(2)[0].T
            if seen.shape[-1] == width and count <= len(seen) <= count + _FURTHER:
                self._compare(seen, count, width)

    def _compare(self, seen: Tensor, count: int, width: int) -> None:
        assert self.tokens is not None
        assert self.order is not None
        for start in range(len(seen) - count + 1):
            added = seen[start : start + count] - self.tokens
            for name, table in self.tables.items():
                for across in (False, True):
                    rows = _rows(table, across, width)
                    for first in range(max(0, min(len(rows) - count, _FURTHER) + 1)):
                        apart = (rows[first : first + count] - added).abs().max()
                        if float(apart) <= _SAME * float(rows.abs().max()):
                            bias = f"{self.name}.bias" if getattr(self.module, "bias", None) is not None else None
                            place = slice(first, first + count)
                            self.found = PatchPositions(f"{self.name}.weight", bias, name, place, across, self.order)
                            raise FoundError


def _probe(model: nn.Module, module: nn.Module, name: str, tables: Tensors, input: InputSpec) -> PatchPositions | None:
    image = torch.rand(prod(input.shape), generator=Seed(0).derive("positions").generator(), dtype=torch.float64)
    image = image.to(next(iter(tables.values())))
    added = {key: value for key, value in tables.items() if key not in (f"{name}.weight", f"{name}.bias")}
    inputs = image.view(1, *input.shape)
    seen: _Probe = watch(model, module, inputs, added, lambda drawn: _Probe(name, module, drawn, input, image))
    return seen.found


def _pixel_order(module: nn.Module, taken: Tensor, image: Tensor, input: InputSpec) -> Tensor | None:
    """Return (T, K): which pixel each entry of each patch is; ``None`` if patches are not the image's pixels, each once."""
    if isinstance(module, nn.Conv2d):
        size = (int(module.kernel_size[0]), int(module.kernel_size[1]))
        if tuple(taken.shape) != (1, *input.shape) or input.shape[1] % size[0] or input.shape[2] % size[1]:
            return None
        places = torch.arange(prod(input.shape), dtype=torch.float64).view(1, *input.shape)
        if not torch.equal(taken.flatten(), image):
            return None
        return nn.functional.unfold(places, size, stride=size)[0].T.long()
    cut = taken.reshape(-1, taken.shape[-1])
    if cut.numel() != image.numel():
        return None
    by_value, places = image.sort()
    found = torch.searchsorted(by_value, cut.flatten().contiguous()).clamp_max(len(places) - 1)
    order = places[found].view(cut.shape)
    return order if torch.equal(image[order], cut) and bool((order.flatten().bincount(minlength=len(image)) == 1).all()) else None


def _rows(table: Tensor, across: bool, width: int) -> Tensor:
    """Return a table of positions as (places, features); without a place where it is none of that kind."""
    if across:
        return table.flatten(2)[0].T if table.ndim >= 3 and table.shape[:2] == (1, width) else table.new_zeros(0, width)
    return table.reshape(-1, width) if table.shape[-1] == width else table.new_zeros(0, width)
