"""Set the smallest entries of the update to zero.

Formula: g_i <- 0 for the floor(ratio * n) entries of smallest |g_i| among n; of equal ones, the first in the tensor go first
Source: Zhu, Liu, Han 2019, "Deep Leakage from Gradients", arXiv 1906.08935; Lin et al. 2018 (DGC), arXiv 1712.01887
Cost: a biased update, as there is no error feedback between rounds here; DGC keeps accuracy only with it
Broken by: Wu et al. 2023, arXiv 2210.10880 (learned inversion); Yue et al. 2023, arXiv 2206.04055; matching only what is left
Limits: who knows it has 39 and 33 dB at 70 and 90 %, mean image 13 (scenarios/sweeps/defenses.toml); at 99 % it costs 13 points
of accuracy (tests/benchmarks/deep_gradient_compression.py)
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedleak.defenses._tensors import finite_floats, map_floats, widened
from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses
from fedleak.observation import Tensors


@defenses.register
class GradientPruning(Defense):
    """Zero the smallest entries; see the module for formula and source."""

    name = "gradient-pruning"
    identity = {"ratio": 0.0}
    excludes = {
        "gradient-pruning": "the second finds entries at zero to prune again; set one larger ratio",
        "random-masking": "both set entries to zero, and of the update as a whole neither leaves the share that it says",
        "deep-gradient-compression": "both send a part of the entries, and its memory would take what this one removes for sent",
    }
    not_before = dict.fromkeys(
        ("gaussian-noise", "laplacian-noise", "client-dp"),
        "noise fills the entries that it has set to zero, so that none is left out any more",
    )

    class Config(DefenseConfig):
        """Parameters."""

        ratio: float = Field(ge=0, lt=1, description="share of entries set to zero, in [0, 1); rounded down to whole entries")
        scope: Literal["tensor", "global"] = Field(
            default="tensor", description="tensor: the share of each tensor, as in DGC; global: of all entries together"
        )

    config: Config

    def removed_share(self) -> float:
        """Return the share, up to whole entries."""
        return self.config.ratio

    def on_update(self, update: Tensors, situation: Situation) -> Tensors:
        """Return the update with its smallest entries at zero."""
        floats = finite_floats(self.name, update)
        if self.config.scope == "tensor":
            pruned = {name: smallest(tensor.flatten(), self.config.ratio) for name, tensor in floats.items()}
        else:
            sizes = [tensor.numel() for tensor in floats.values()]
            everything = torch.cat([tensor.flatten() for tensor in floats.values()]) if floats else torch.empty(0)
            pruned = dict(zip(floats, torch.split(smallest(everything, self.config.ratio), sizes), strict=True))

        def prune(name: str, tensor: Tensor) -> Tensor:
            return tensor.masked_fill(pruned[name].view(tensor.shape), 0.0)

        return map_floats(self.name, update, prune)

    def value_bits(self, before: float | None) -> float | None:
        """Return ``before``: what stays is as it was."""
        return before


def smallest(values: Tensor, ratio: float) -> Tensor:
    """Return a boolean mask of the ``floor(ratio * n)`` entries of smallest magnitude; the first of equal ones come first.

    Parameters
    ----------
    values : Tensor
        (n,) of any float dtype.
    ratio : float
        In [0, 1), taken as the decimal number it is written as: 0.29 of 100 entries are 29.
    """
    # Binary floats fall short of many decimals (0.29 * 100 < 29), so the count is taken from the exact decimal.
    count = int(Fraction(repr(ratio)) * values.numel())
    if count == 0:
        return torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    magnitudes = widened(values).abs()
    threshold = magnitudes.kthvalue(count).values
    chosen = magnitudes < threshold
    tied = (magnitudes == threshold).nonzero().squeeze(1)[: count - int(chosen.sum())]
    chosen[tied] = True
    return chosen
