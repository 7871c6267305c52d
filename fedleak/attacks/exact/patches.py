"""Reads the one image behind an update of a network with patches and learned positions, its label, and a certificate.

Formula: ``positions.py``, and ``single_label.py`` for the label.
Source: fedleak's own.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from fedleak.attacks.base import Reconstruction
from fedleak.attacks.exact.moved import moved
from fedleak.attacks.exact.positions import PatchPositions, solve_patches
from fedleak.attacks.exact.single_label import single_label
from fedleak.errors import AttackError
from fedleak.modalities.image import InputSpec
from fedleak.models.trial import tried
from fedleak.observation import Observation
from fedleak.seeding import Seed


def read_patches(
    observation: Observation, model: nn.Module, found: PatchPositions, label: int | None, device: torch.device
) -> Reconstruction:
    """Return the image behind ``observation``, and its label where that is not given.

    Raises
    ------
    AttackError
        If more than one image is known to be behind it, or the update of the embedding is zero or not finite.
    """
    if observation.batch_size > 1:
        raise AttackError(
            f"the patch equations of '{found.weight}' read one image, but {observation.batch_size} are behind the update, whose "
            "signals the positions add up; use gradient matching ('natural')"
        )
    names = [name for name in (found.weight, found.bias, found.positions) if name is not None]
    gradient, noise = moved(observation, names, device)
    if not bool(gradient[found.weight].any()):
        raise AttackError(f"the update of '{found.weight}' is zero: it says nothing about the image")
    solution = solve_patches(found, gradient, observation.input, noise)
    flags = []
    if solution.rank < found.patches:
        flags.append("not-identifiable")
    if solution.contradicted:
        flags.append("equations-contradict")
    label = single_label(observation, model) if label is None else label
    return Reconstruction(
        images=observation.input.denormalize(solution.input[None]).float(),
        labels=None if label is None else (label,),
        loss=solution.residual,
        stop_reason="solved",
        flags=tuple(flags),
        method=f"patches of '{found.weight}', positions '{found.positions}': rank {solution.rank} of {found.patches}, "
        f"condition {solution.condition:.0e}, equations off by {solution.residual:.0e}",
    )


def foreseen(model: nn.Module, found: PatchPositions, input: InputSpec) -> str:
    """Return what the equations promise: counts, and at these weights the rank and condition for one smooth random image."""
    width = dict(model.named_parameters())[found.weight].shape[0]
    said = (
        f"one image off '{found.weight}' and '{found.positions}': {found.patches} patches of {found.order.shape[1]} values, each "
        f"value in {width} equations with {found.patches} unknowns"
    )
    if width < found.patches:
        return f"{said}: fewer than unknowns, so not exact"
    rank, condition = _tried(model, found, input)
    return f"{said}; at these weights rank {rank}, condition {condition:.0e}"


def _tried(model: nn.Module, found: PatchPositions, input: InputSpec) -> tuple[int, float]:
    generator = Seed(0).derive("patches").generator()
    coarse = torch.rand((1, input.shape[0], 4, 4), generator=generator)
    image = functional.interpolate(coarse, size=input.shape[1:], mode="bicubic").clamp(0, 1)
    own = dict(model.named_parameters())
    leaves = {name: own[name].detach().clone().requires_grad_() for name in (found.weight, found.positions)}
    logits = tried(model, input.normalize(image).to(leaves[found.weight]), leaves)
    weights = torch.randn(logits.shape, generator=generator).to(logits)
    values = torch.autograd.grad((logits * weights).sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    if not bool(values[0].any()):
        return 0, float("inf")  # a head of zeros lets no signal through
    solution = solve_patches(found, dict(zip(leaves, values, strict=True)), input)
    return solution.rank, solution.condition
