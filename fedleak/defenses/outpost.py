"""Prune and perturb each step's gradient by the spread of the layer's weights, the less often the longer training lasts.

Formula: with probability 1 / (1 + beta * t) at the client's step t from 0: g_k <- 0 for the prune_base % of each tensor of
smallest |g_k|; then g_k <- g_k + N(0, (risk * noise_base)^2), risk = min(var(w), 1), where g_k^2 was among the phi % largest of
all entries
Source: Wang, Hugg, Li 2023, "More than Enough is Too Much", INFOCOM, and Plato's code, whose perturbation is never sent: a bug
Cost: one quantile of the gradient and of each tensor; a biased, noisy gradient in early steps
Broken by: an attacker who drops what was pruned and what noise outweighs; steps that are not perturbed are sent as they are
Limits: who knows it has 15 dB, mean image 13, yet 38 to 100 % of the images are still identified
(scenarios/sweeps/defenses.toml)
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses
from fedleak.defenses.gradient_pruning import smallest
from fedleak.observation import Tensors

_STEPS = "steps"


@defenses.register
class Outpost(Defense):
    """Perturb early gradients by their risk; see the module for formula and source.

    Plato's code averages squared gradients over the first axis before it ranks them; here each entry has its own rank.
    """

    name = "outpost"
    remembers = True
    identity = {"prune_base": 0.0, "noise_base": 0.0}
    excludes = {"outpost": "the second would rank the noise of the first"}
    not_before = {"soteria": "it would zero what Outpost has perturbed"}

    class Config(DefenseConfig):
        """Parameters, with the paper's values."""

        prune_base: float = Field(default=80.0, ge=0, lt=100, description="entries of each tensor that are pruned, in per cent")
        noise_base: float = Field(default=0.8, ge=0, description="noise deviation for a risk of 1, in units of the gradient")
        phi: float = Field(default=40.0, ge=0, lt=100, description="entries that are perturbed, in per cent of all")
        beta: float = Field(default=0.125, ge=0, description="how fast it is applied less often, by step of the client")

    config: Config

    def on_gradient(self, gradient: Tensors, model: nn.Module, images: Tensor, labels: Tensor, situation: Situation) -> Tensors:
        """Return the perturbed gradient, or now and then the gradient as it is."""
        config, memory, seed = self.config, situation.memory, situation.seed
        step = int(memory.get(_STEPS, torch.zeros(1, dtype=torch.long)))
        memory[_STEPS] = torch.tensor([step + 1])
        applies = float(torch.rand((), generator=seed.derive("applies").generator())) < 1 / (1 + config.beta * step)
        if not applies or not (config.prune_base or config.noise_base):
            return gradient
        perturbed = most_informative(gradient, config.phi)
        risk = risks(dict(model.named_parameters()))

        def change(name: str, value: Tensor) -> Tensor:
            pruned = smallest(value.flatten(), config.prune_base / 100).view(value.shape)
            noise = seed.derive("noise", name).normal(value.shape).to(value)
            return value.masked_fill(pruned, 0.0) + risk[name] * config.noise_base * noise * perturbed[name]

        return {name: change(name, value) for name, value in gradient.items()}


def risks(parameters: Tensors) -> dict[str, float]:
    """Return min(var(w), 1) for each tensor of weights; 0 for a single one."""
    return {name: min(float(value.detach().var()), 1.0) if value.numel() > 1 else 0.0 for name, value in parameters.items()}


def most_informative(gradient: Tensors, phi: float) -> Tensors:
    """Return boolean tensors of the gradient's shapes: which entries are among the ``phi`` % of largest square of all."""
    everything = torch.cat([value.flatten() for value in gradient.values()])
    largest = ~smallest(everything, 1 - phi / 100) if phi else torch.zeros_like(everything, dtype=torch.bool)
    parts = torch.split(largest, [value.numel() for value in gradient.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(gradient.items(), parts, strict=True)}
