"""Identifiability count: equations against unknowns, layer by layer, before any attack runs.

Formula: a convolution's input has B*C*H*W unknowns. Equations: its known outputs, B*O*H'*W', plus C * sum over parity classes
(i, j) mod stride of min(O * taps hitting the class, B * pixels of the class) from its weight gradient; of a gradient with
entries missing, those that are left.
The whole: min over layers l of B*dim(h_l) + parameters up to l, against B*C*H*W pixels.
Source: a rank analysis in the manner of R-GAP (Zhu and Blaschko, arXiv 2010.07733), refined by parity classes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from fedleak.attacks.exact.convolution import Geometry
from fedleak.attacks.exact.positions import find_positions
from fedleak.modalities.image import InputSpec
from fedleak.models.inspect import ExecutionOrder, LeafCall, execution_order
from fedleak.observation import LocalTraining

RELU_KNOWN = 0.5
"""Share of a ReLU's inputs taken to be positive, hence known, before anything is measured."""


@dataclass(frozen=True)
class LayerCount:
    """Unknowns and equations of one layer's input for a whole batch.

    Attributes
    ----------
    layer : str
        The module's name; ``"(model)"`` for the bound on the whole problem.
    kind : str
        The module's class, or ``"whole"``.
    unknowns, equations : int
        Scalars to find, and independent scalar equations for them at best.
    """

    layer: str
    kind: str
    unknowns: int
    equations: int

    @property
    def slack(self) -> int:
        """Equations left over: below zero the solution is not unique, and within 10 % of the unknowns rounding decides."""
        return self.equations - self.unknowns


def count(model: nn.Module, input: InputSpec, batch_size: int, kept: float = 1.0) -> list[LayerCount]:
    """Return the count for each layer with parameters and each pooling layer, in the order executed, then for the whole.

    The last row, ``"(model)"``, is a bound on any attack. The rows before it, which only feed-forward networks get,
    tell whether solving layer by layer can be exact: where one falls short while the whole does not, the layers
    must be solved together.

    Parameters
    ----------
    model : Module
        Any; with a residual connection, for instance, only the whole is bounded.
    input : InputSpec
        What the model takes.
    batch_size : int
        Images behind the update.
    kept : float
        Share of the update's entries that a defense leaves, in (0, 1]: the others are no equations.

    Notes
    -----
    One image's patches with learned positions are counted as one layer, whatever follows them. Of the outputs that pass a
    ReLU half are taken to be known, and of those that pass a pooling layer as many as come out. The classifier's own input
    counts what a rank-B matrix of softmax derivatives determines, given the labels.
    """
    order = execution_order(model, input)
    layers = _count_patches(model, input, batch_size, kept) or count_layers(order, batch_size, kept)
    return [*layers, _count_whole(model, order, input, batch_size, kept)]


def count_update(model: nn.Module, input: InputSpec, local: LocalTraining, kept: float = 1.0) -> list[LayerCount]:
    """Return the count for one client's update: as :func:`count` for one step, and the bound on the whole for several."""
    counts = count(model, input, local.num_examples, kept)
    if local.steps == 1:
        return counts
    whole = counts[-1]
    if local.steps * local.batch_size > local.num_examples + local.batch_size - 1:
        # An image that is trained on again shows itself at other weights; only the size of the update bounds that.
        whole = replace(whole, equations=int(kept * sum(p.numel() for p in model.parameters() if p.requires_grad)))
    return [*_count_patches(model, input, local.num_examples, kept), whole]


def count_layers(order: ExecutionOrder, batch_size: int, kept: float = 1.0) -> list[LayerCount]:
    """Return the count of each layer of a feed-forward network; none where the analysis does not apply."""
    if not order.feed_forward:
        return []
    counts = []
    known = 1.0
    for position, call in reversed(list(enumerate(order.calls))):
        counted = _count_call(call, batch_size, known, kept, last=position == len(order.calls) - 1)
        if counted is not None:
            counts.append(counted)
            pooling = not list(call.module.parameters())
            known = known * prod(call.output_shape) / prod(call.input_shape) if pooling else 1.0
        elif type(call.module) is nn.ReLU:
            known = min(known, RELU_KNOWN)
        elif list(call.module.parameters()) and not isinstance(call.module, nn.BatchNorm2d | nn.BatchNorm1d):
            return []
    return counts[::-1]


def _count_patches(model: nn.Module, input: InputSpec, batch_size: int, kept: float) -> list[LayerCount]:
    """Return the count of the embedding of patches, where their positions give away the signals of the one image's patches.

    They sum over local steps as the embedding's gradient does, so that the count holds after any number of steps of SGD.
    """
    found = find_positions(model, input) if batch_size == 1 else None
    named = dict(model.named_parameters())
    if found is None or not (named[found.weight].requires_grad and named[found.positions].requires_grad):
        return []
    equations = int(kept * named[found.weight].numel())
    return [LayerCount(found.weight.rpartition(".")[0], "patches", found.order.numel(), equations)]


def _count_whole(model: nn.Module, order: ExecutionOrder, input: InputSpec, batch_size: int, kept: float) -> LayerCount:
    """Return the bound on the whole problem: what passes a cut between two layers is what an attack can see below it.

    At a cut, the gradient depends on the batch by the values there, and by the gradients of the parameters before it.
    """
    bounds = [int(kept * sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad))]
    before, begun = 0, False
    if order.feed_forward:
        for call in order.calls:
            before += sum(parameter.numel() for parameter in call.module.parameters() if parameter.requires_grad)
            begun = begun or any(True for _ in call.module.parameters())
            if begun and call is not order.calls[-1]:
                bounds.append(batch_size * prod(call.output_shape) + int(kept * before))
    return LayerCount("(model)", "whole", batch_size * prod(input.shape), min(bounds))


def weakest(counts: list[LayerCount]) -> LayerCount:
    """Return the layer with the least slack in proportion to its unknowns: the one that decides."""
    return min(counts, key=lambda counted: counted.slack / max(counted.unknowns, 1))


def count_convolution(
    name: str,
    geometry: Geometry,
    outputs: int,
    known: int,
    batch_size: int = 1,
    kind: str = "Conv2d",
    *,
    kept: float = 1.0,
    survivors: Tensor | None = None,
) -> LayerCount:
    """Return the count of one convolution, of whose batch's output ``known`` entries are known.

    Parameters
    ----------
    kept : float
        Share of its gradient's entries that are not missing, in (0, 1]: what is expected before anything is seen.
    survivors : Tensor, optional
        (O, C * taps), boolean: which of them are not.
    """
    channels, height, width = geometry.input_shape
    vertical = _axis_classes(height, geometry.kernel[0], geometry.stride[0], geometry.padding[0], geometry.dilation[0])
    horizontal = _axis_classes(width, geometry.kernel[1], geometry.stride[1], geometry.padding[1], geometry.dilation[1])
    if survivors is None:
        classes = [(int(kept * outputs * a * b), batch_size * p * q) for a, p in vertical for b, q in horizontal]
        derivative = channels * sum(min(pair) for pair in classes)
    else:
        derivative = _surviving_equations(survivors, geometry, batch_size)
    return LayerCount(name, kind, batch_size * channels * height * width, known + derivative)


def _surviving_equations(survivors: Tensor, geometry: Geometry, batch_size: int) -> int:
    """Return how many equations a kernel's gradient gives at best of which only the entries in ``survivors`` are known."""
    channels, height, width = geometry.input_shape
    kept = survivors.view(len(survivors), channels, *geometry.kernel).sum(0)
    (down, across), (top, left) = geometry.stride, geometry.padding
    rows = (torch.arange(geometry.kernel[0]) * geometry.dilation[0] - top) % down
    columns = (torch.arange(geometry.kernel[1]) * geometry.dilation[1] - left) % across
    total = 0
    for i in range(down):
        for j in range(across):
            places = batch_size * len(range(i, height, down)) * len(range(j, width, across))
            total += int(kept[:, rows == i][:, :, columns == j].sum((1, 2)).clamp_max(places).sum())
    return total


def _axis_classes(size: int, kernel: int, stride: int, padding: int, dilation: int) -> list[tuple[int, int]]:
    """Return (taps that hit it, positions in it) for each class of positions modulo ``stride``."""
    taps = Counter((tap * dilation - padding) % stride for tap in range(kernel))
    return [(taps[residue], len(range(residue, size, stride))) for residue in range(stride)]


def _count_call(call: LeafCall, batch_size: int, known: float, kept: float, *, last: bool) -> LayerCount | None:
    module, kind = call.module, type(call.module).__name__
    if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.requires_grad:
        kept = 0.0  # of a frozen layer no gradient travels
    if isinstance(module, nn.Linear):
        return _count_linear(call.name, module, batch_size, known, kept, last=last)
    if isinstance(module, nn.Conv2d):
        geometry = Geometry.of(module, call.input_shape)
        if geometry is None:
            return None
        return count_convolution(
            call.name, geometry, module.out_channels, int(known * batch_size * prod(call.output_shape)), batch_size, kept=kept
        )
    if prod(call.output_shape) < prod(call.input_shape) and not list(module.parameters()):
        return LayerCount(call.name, kind, batch_size * prod(call.input_shape), int(known * batch_size * prod(call.output_shape)))
    return None


def _count_linear(name: str, module: nn.Linear, batch_size: int, known: float, kept: float, *, last: bool) -> LayerCount:
    unknowns = batch_size * module.in_features
    if last:
        rank = min(batch_size, module.out_features - 1)
        equations = rank * (module.out_features - 1 + module.in_features + int(module.bias is not None) - rank)
        equations = min(equations, int(kept * sum(parameter.numel() for parameter in module.parameters())))
    else:
        derivative = int(module.in_features * min(kept * module.out_features, batch_size))
        equations = int(known * batch_size * module.out_features) + derivative
    return LayerCount(name, "Linear", unknowns, equations)
