"""The gradient of a linear first layer, which is a short sum of images: one for each sample, weighted by its derivatives.

Formula: [dW | db] = sum_k delta_k [x_k | 1], of rank B; by its SVD U S V^T, the images are A V^T and the derivatives U S A^-1
for one unknown B x B matrix A, whose rows are scaled by the column of db: A v_1 = 1.
Source: Phong et al. 2017 (IEEE TIFS 13(5)); Dimitrov et al., "SPEAR", NeurIPS 2024, arXiv 2403.03945.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedleak.attacks.victims.base import Victim
from fedleak.errors import AttackError
from fedleak.modalities.image import InputSpec
from fedleak.models.inspect import execution_order
from fedleak.models.trial import tried
from fedleak.observation import Observation

_RANK = 1e-6
_NOISY = 1e-2


@dataclass(frozen=True)
class FirstLayer:
    """A linear layer that takes the flat image, and its gradient; float64.

    Attributes
    ----------
    name : str
        Of the module.
    weight, gradient : Tensor
        (M, D).
    bias, bias_gradient : Tensor or None
        (M,).
    activation : Module or None
        What is executed next.
    """

    name: str
    weight: Tensor
    gradient: Tensor
    bias: Tensor | None
    bias_gradient: Tensor | None
    activation: nn.Module | None

    @property
    def stacked(self) -> Tensor:
        """The gradient with that of the bias as its last column, if there is a bias: (M, D) or (M, D + 1)."""
        return self.gradient if self.bias_gradient is None else torch.cat([self.gradient, self.bias_gradient[:, None]], 1)


@dataclass(frozen=True)
class Factors:
    """The gradient's singular vectors, cut to the number of images.

    Attributes
    ----------
    left, size, right : Tensor
        (M, B), (B,) and (B, D) or (B, D + 1).
    noise : float
        First singular value left out over the last one kept; 1e-6 for plain float32, as a rule.
    """

    left: Tensor
    size: Tensor
    right: Tensor
    noise: float

    @property
    def rank(self) -> int:
        """How many images the gradient is made of."""
        return len(self.size)


def first_layer(observation: Observation, model: nn.Module, device: torch.device) -> FirstLayer:
    """Return the first layer and its gradient.

    Raises
    ------
    AttackError
        If the first layer executed that has parameters is no ``nn.Linear`` on the flat image, or its gradient is not
        finite or is zero.
    """
    order = execution_order(model, observation.input)
    found = [number for number, call in enumerate(order.calls) if next(call.module.parameters(), None) is not None]
    call = order.calls[found[0]] if found else None
    if call is None or not isinstance(call.module, nn.Linear) or not _takes_flat_image(model, call.module, observation.input):
        what = f"'{call.name}' is {type(call.module).__name__}" if call else "there is none"
        raise AttackError(
            f"the first layer must be an nn.Linear on the flat image, but {what}; use gradient matching, or 'closed-form' for "
            "one image"
        )
    if f"{call.name}.weight" not in observation.parameters:
        raise AttackError(f"the update of the first layer '{call.name}' does not travel: it says nothing about the images")
    local = observation.local
    if any(isinstance(before.module, nn.Dropout) and before.module.p > 0 for before in order.calls[: found[0]]) and (
        local is None or local.mode == "train"
    ):
        raise AttackError("dropout before the first layer hides pixels at random; use gradient matching")
    gradient = observation.gradient()
    values = [
        None if value is None else value.detach().to(device, torch.float64)
        for name in ("weight", "bias")
        for value in (observation.parameters.get(f"{call.name}.{name}"), gradient.get(f"{call.name}.{name}"))
    ]
    weight, d_weight, bias, d_bias = values
    assert weight is not None
    assert d_weight is not None
    if not all(bool(value.isfinite().all()) for value in gradient.values()):
        raise AttackError("the update is not finite: it says nothing about the images")
    if not bool(d_weight.any()):
        raise AttackError(f"the gradient of the first layer '{call.name}' is zero: it says nothing about the images")
    following = order.calls[found[0] + 1].module if found[0] + 1 < len(order.calls) else None
    return FirstLayer(call.name, weight, d_weight, bias, d_bias, following)


def factors(layer: FirstLayer, images: int | None) -> Factors:
    """Return the leading singular vectors of the gradient, one for each image.

    Parameters
    ----------
    layer : FirstLayer
        Of M units.
    images : int or None
        How many images are behind the update, if known; fewer come back where some leave no trace.

    Raises
    ------
    AttackError
        If the rank is not below the number of units, or clearly above the number of images: noise, or several steps.
    """
    # The Gram matrix of the rows would be cheaper, but squares the singular values: float32 noise would hide the last ones.
    left, size, right = torch.linalg.svd(layer.stacked, full_matrices=False)
    rank = int((size > _RANK * size[0]).sum())
    kept = rank if images is None else min(images, rank)
    noise = float(size[kept] / size[kept - 1]) if kept < len(size) else 1.0
    if noise > _NOISY:
        expected = "" if images is None else f" instead of {images}"
        raise AttackError(
            f"the first layer's gradient has rank {rank}{expected}, which is no short sum of images: noise, a defense, several "
            f"local steps, or as many images as its {layer.weight.shape[0]} units; use gradient matching"
        )
    return Factors(left[:, :kept], size[:kept], right[:kept], noise)


def refuse_several_steps(observation: Observation, attack: str) -> None:
    """Raise where weights after more than one local step hide the zeros of each step's gradient.

    Raises
    ------
    AttackError
        If the client took several steps.
    """
    if observation.kind == "weights" and observation.local is not None and observation.local.steps > 1:
        raise AttackError(
            f"'{attack}' reads one step's gradient, but the client took {observation.local.steps} local steps; use 'analytic' "
            "for one image, or gradient matching"
        )


def images_of(rows: Tensor, input: InputSpec) -> Tensor:
    """Return pixels (B, C, H, W) of flat model inputs (B, D)."""
    return input.denormalize(rows.reshape(-1, *input.shape))


def labels_of(victim: Victim, layer: FirstLayer, inputs: Tensor, derivatives: Tensor) -> tuple[int, ...]:
    """Return for each image the label whose derivative by the first layer's outputs is nearest to the one found.

    Parameters
    ----------
    victim : Victim
        The network, in float64.
    inputs : Tensor
        (B, C, H, W) model inputs.
    derivatives : Tensor
        (B, M) of the mean loss.
    """
    weight, bias = victim.parameters[f"{layer.name}.weight"], victim.parameters.get(f"{layer.name}.bias")
    logits = victim.logits(inputs)
    # One image's derivative by the outputs z is read off the layer's gradient for it: dW = delta x^T.
    energy = inputs.flatten(1).square().sum(1)
    found = []
    for k in range(len(inputs)):
        one = logits if len(inputs) == 1 else victim.logits(inputs[k : k + 1])
        if bias is not None:
            jacobian = [torch.autograd.grad(value, bias, retain_graph=True)[0] for value in one[0]]
        else:
            flat = inputs[k].flatten() / energy[k]
            jacobian = [torch.autograd.grad(value, weight, retain_graph=True)[0] @ flat for value in one[0]]
        stacked = torch.stack(jacobian)
        expected = one[0].detach().softmax(0) @ stacked - stacked
        misfit = (expected - derivatives[k] * len(inputs)).square().sum(1)
        found.append(int(misfit.argmin()))
    return tuple(found)


def relative_misfit(victim: Victim, inputs: Tensor, labels: tuple[int, ...]) -> float:
    """Return the norm of the difference between the observed gradient and that of a guess, relative to the observed one.

    Parameters
    ----------
    victim : Victim
        Holds the observed gradient.
    inputs : Tensor
        (B, C, H, W) model inputs.
    labels : tuple of int
        One for each.
    """
    targets = torch.nn.functional.one_hot(torch.tensor(labels, device=inputs.device), victim.input.num_classes).to(inputs)
    guessed = victim.gradient(inputs, targets)
    misfit = sum(float((mine.detach() - seen).square().sum()) for mine, seen in zip(guessed, victim.observed, strict=True))
    return float((misfit / sum(float(seen.square().sum()) for seen in victim.observed)) ** 0.5)


def _takes_flat_image(model: nn.Module, layer: nn.Linear, input: InputSpec) -> bool:
    """Say whether ``layer`` is given the pixels themselves, in order: no pooling, patches or functions before it."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    probe = torch.linspace(0.1, 0.9, input.shape[0] * input.shape[1] * input.shape[2]).reshape(1, *input.shape).to(layer.weight)
    try:
        with torch.no_grad():
            tried(model, probe)
    finally:
        handle.remove()
    return len(seen) == 1 and seen[0].shape == (1, probe.numel()) and torch.equal(seen[0], probe.flatten(1))
