"""Cocktail Party: unmixes the images in a fully connected first layer's gradient by independent component analysis.

Formula: dW = sum_k delta_k x_k^T; whiten its B leading rows, and rotate them to the greatest negentropy, E[log cosh]; sign and
scale by the bias gradient, or else by a natural image's mean and contrast.
Source: Kariyappa et al. 2022, "Cocktail Party Attack", arXiv 2209.05578. Here the components are those of the differences of
neighbouring pixels, found by the fixed-point iteration for the same log cosh with orthogonal rows, in place of gradient
descent with penalties on total variation and on dependence; the images of convolutional networks are not rebuilt.
For: MLPs, and large batches
Limits: approximate: 37, 30, 26 and 22 dB of 4, 8, 16 and 32 images (tests/benchmarks/linear_first_layer.py); needs a linear
first layer and a single local step
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedleak.attacks.base import Attack, AttackConfig, Budget, Reconstruction, attacks
from fedleak.attacks.exact.first_layer import factors, first_layer, labels_of, refuse_several_steps, relative_misfit
from fedleak.attacks.exact.ica import unmix
from fedleak.attacks.victims.base import Victim
from fedleak.observation import Observation
from fedleak.seeding import Seed

_MEAN, _CONTRAST = 0.47, 0.25


class CocktailPartyConfig(AttackConfig):
    """Parameters of the fixed-point iteration."""

    iterations: int = Field(default=200, ge=1, description="passes of the fixed-point iteration at most")


@attacks.register
class CocktailParty(Attack):
    """Approximate, for batches up to the width of the first layer, whatever the activation; no labels needed."""

    name: ClassVar[str] = "cocktail-party"
    exact: ClassVar[bool] = True
    own_labels: ClassVar[bool] = True
    suits: ClassVar[dict[str, Any]] = {"name": "mlp"}
    Config: ClassVar[type[AttackConfig]] = CocktailPartyConfig
    config: CocktailPartyConfig

    def reconstruct(
        self, observation: Observation, model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> Reconstruction:
        """Unmix the rows of the first layer's gradient."""
        refuse_several_steps(observation, self.name)
        victim = Victim(model, observation, device, torch.float64)
        layer = first_layer(observation, model, device)
        found = factors(layer, observation.local.num_examples if observation.local is not None else None)
        mixed = found.right if layer.bias is None else found.right[:, :-1]
        unmixing = found.right.new_ones(1, 1)
        if found.rank > 1:
            generator = rng.derive("start").generator()
            unmixing = unmix(mixed, observation.input.shape, generator, self.config.iterations)
        rows = unmixing @ mixed
        scale = _natural_scale(rows) if layer.bias is None else unmixing @ found.right[:, -1]
        scale = torch.where(scale.abs() < 1e-9, scale.new_full((), 1e-9), scale)
        pixels = observation.input.denormalize((rows / scale[:, None]).reshape(-1, *observation.input.shape))
        if layer.bias is None:
            pixels = _natural_pixels(pixels)
        inputs = observation.input.normalize(pixels)
        derivatives = (found.left * found.size) @ torch.linalg.pinv(unmixing / scale[:, None])
        labels = labels_of(victim, layer, inputs, derivatives.mT)
        loss = relative_misfit(victim, inputs, labels)
        return Reconstruction(pixels.float().cpu(), labels=labels, loss=loss, stop_reason="solved")


def _natural_scale(rows: Tensor) -> Tensor:
    """Return what to divide flat images (B, D) by: their spread, with the sign of their mean."""
    return rows.std(dim=1) * torch.where(rows.mean(dim=1) < 0, -1.0, 1.0).to(rows)


def _natural_pixels(pixels: Tensor) -> Tensor:
    """Return images (B, C, H, W) with a natural image's mean and contrast."""
    flat = pixels.flatten(1)
    scaled = (flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True) * _CONTRAST + _MEAN
    return scaled.reshape(pixels.shape)
