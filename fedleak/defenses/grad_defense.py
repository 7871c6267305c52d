"""Add noise to randomly chosen slices of each step's gradient, the slices being short where gradients tell most of the image.

Formula: sensitivity of a tensor s_l = mean_b |d sum(grad_l) / d x_b|; the gradient's entries in order are cut into slices of
equal sensitivity, an entry of tensor l counting s_l / n_l; g <- g + N(0, scale^2) on the slices drawn. With clip, the entries of
each drawn slice are scaled to a norm of at most clip first
Source: Wang, Guo, Xie, Qi 2022, "Protect Privacy from Gradient Leakage Attack in Federated Learning", INFOCOM; its public code
Cost: a second derivative for each tensor in each local step; noise on about the share drawn / slices of the sensitivity
Broken by: an attacker who matches the slices that were not drawn, which the size of the noise gives away
Limits: the louder the noise, the better slices without it are told apart: who knows it has 32 dB at scale 0.01, and 40 at 0.1
(scenarios/sweeps/defenses.toml). The server's part, which compensates, is left out
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses
from fedleak.observation import Tensors
from fedleak.payload import trained


@defenses.register
class GradDefense(Defense):
    """Perturb slices of the gradient; see the module for formula and source.

    The authors take the sensitivity from a small public root set; here it is that of the client's own batch. They clip each
    image's slice where clipping is on, here the batch's; their compensation, by which the server denoises the aggregate, is no
    client's defense and is left out.
    """

    name = "grad-defense"
    identity = {"scale": 0.0}
    excludes = {"grad-defense": "both would perturb the same slices; raise scale or drawn"}
    not_before = {"soteria": "it would zero the noise again", "outpost": "it would rank the noise, and prune it"}

    class Config(DefenseConfig):
        """Parameters, with the values of the authors' attack demonstration."""

        scale: float = Field(default=0.1, ge=0, description="standard deviation of the noise, in units of the gradient")
        slices: int = Field(default=10, ge=1, le=1_000_000, description="slices of equal sensitivity")
        drawn: int = Field(default=5, ge=1, description="slices that are perturbed, at most all")
        clip: float | None = Field(default=None, gt=0, description="greatest norm of a drawn slice; none by default")

        @model_validator(mode="after")
        def _enough(self) -> GradDefense.Config:
            if self.drawn > self.slices:
                raise ValueError(f"drawn: expected at most slices = {self.slices}, got {self.drawn}")
            return self

    config: Config

    def on_gradient(self, gradient: Tensors, model: nn.Module, images: Tensor, labels: Tensor, situation: Situation) -> Tensors:
        """Return the gradient with noise on the slices drawn."""
        config, seed = self.config, situation.seed
        if not config.scale and config.clip is None:
            return gradient
        cuts = slices(sensitivities(model, situation.input.normalize(images), labels), gradient, config.slices)
        chosen = torch.randperm(config.slices, generator=seed.derive("slices").generator())[: config.drawn]
        flat = torch.cat([value.flatten() for value in gradient.values()])
        noise = config.scale * seed.derive("noise").normal(flat.shape).to(flat)
        for number in chosen.tolist():
            part = slice(cuts[number], cuts[number + 1])
            if config.clip is not None and part.stop > part.start:
                flat[part] *= min(1.0, config.clip / max(float(flat[part].norm()), torch.finfo(flat.dtype).tiny))
            flat[part] += noise[part]
        parts = torch.split(flat, [value.numel() for value in gradient.values()])
        return {name: part.view(value.shape).clone() for (name, value), part in zip(gradient.items(), parts, strict=True)}


def sensitivities(model: nn.Module, inputs: Tensor, labels: Tensor) -> list[float]:
    """Return for each parameter tensor the mean norm over images of d sum(gradient) / d image.

    Parameters
    ----------
    inputs : Tensor
        Model inputs (B, C, H, W).
    labels : Tensor
        Class indices (B,) or probabilities (B, N).
    """
    inputs = inputs.detach().requires_grad_()
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    parameters = trained(model)
    loss = functional.cross_entropy(functional_call(model, {**parameters, **buffers}, (inputs,)), labels)
    found = torch.autograd.grad(loss, list(parameters.values()), create_graph=True, allow_unused=True)
    result = []
    for value in found:
        if value is None or not value.requires_grad:
            result.append(0.0)
            continue
        (slope,) = torch.autograd.grad(value.sum(), inputs, retain_graph=True, allow_unused=True)
        result.append(0.0 if slope is None else float(slope.flatten(1).norm(dim=1).mean()))
    return result


def slices(sensitivity: list[float], gradient: Tensors, count: int) -> list[int]:
    """Return the ``count`` + 1 places, from 0 to the number of entries, between which each slice has the same sensitivity."""
    entries = torch.tensor([value.numel() for value in gradient.values()])
    weight = torch.tensor(sensitivity, dtype=torch.float64)
    if not bool(weight.sum() > 0):
        weight = entries.double()
    total = torch.repeat_interleave(weight / entries, entries).cumsum(0)
    wanted = total[-1] * torch.arange(1, count, dtype=torch.float64) / count
    inner = torch.searchsorted(total, wanted, right=True)
    return [0, *inner.tolist(), len(total)]
