"""Set randomly chosen entries of the update to zero, whatever their size.

Formula: g <- m * g with m_i ~ Bernoulli(1 - p) for each entry; with rescale, m * g / (1 - p), which keeps the expectation
Source: Kim, Park 2024, "Random Gradient Masking as a Defensive Measure to Deep Leakage", arXiv 2408.08430
Cost: the paper reports next to no loss of accuracy; without rescale the mean update shrinks by the factor 1 - p
Broken by: an attacker who matches only the non-zero entries; fresh masks over rounds on the same data complete each other
Limits: who knows it has 42 and 33 dB at p 0.4 and 0.9 (scenarios/sweeps/defenses.toml), and at 0.9 four rounds of one image
complete each other; not rescaled, 40 % costs 3 points of accuracy and 90 % nearly all (scenarios/claims/masking.toml)
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from fedleak.defenses._tensors import map_floats
from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses
from fedleak.observation import Tensors


@defenses.register
class RandomMasking(Defense):
    """Mask entries at random; see the module for formula and source."""

    name = "random-masking"
    identity = {"p": 0.0}
    excludes = {
        "random-masking": "two masks are one of the larger p = 1 - (1 - p1)(1 - p2); set that",
        "gradient-pruning": "both set entries to zero, and of the update as a whole neither leaves the share that it says",
        "deep-gradient-compression": "both send a part of the entries, and its memory would take what this one removes for sent",
    }
    not_before = dict.fromkeys(
        ("gaussian-noise", "laplacian-noise", "client-dp"),
        "noise fills the entries that it has set to zero, so that none is left out any more",
    )

    class Config(DefenseConfig):
        """Parameters."""

        p: float = Field(ge=0, lt=1, description="probability that an entry is set to zero, in [0, 1)")
        rescale: bool = Field(default=False, description="divide the entries that stay by 1 - p, so that the mean update is kept")
        fresh: bool = Field(
            default=True, description="true: a new mask each round; false: a client's mask is the same in all rounds"
        )

    config: Config

    def removed_share(self) -> float:
        """Return the expected share."""
        return self.config.p

    def on_update(self, update: Tensors, situation: Situation) -> Tensors:
        """Return the masked update."""
        p = self.config.p
        seed = situation.seed
        if not self.config.fresh:
            seed = seed.top.derive("defense", self.name, "fixed mask", situation.client)
        factor = 1 / (1 - p) if self.config.rescale else 1.0

        def mask(name: str, tensor: Tensor) -> Tensor:
            dropped = torch.rand(tensor.shape, generator=seed.derive(name).generator()) < p
            return (tensor * factor).masked_fill(dropped.to(tensor.device), 0.0)

        return map_floats(self.name, update, mask)

    def value_bits(self, before: float | None) -> float | None:
        """Return ``before``: what stays is as it was, or scaled by one factor."""
        return before
