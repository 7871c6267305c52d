"""Clip the update to a largest norm, or each entry to a largest value.

Formula: g <- g * min(1, max_norm / ||g||_2), over all or for each tensor; by value: g_i <- clamp(g_i, -max_norm, max_norm)
Source: Kim, Park 2024, arXiv 2408.08430 (as a defense against DLG); Abadi et al. 2016, arXiv 1607.00133 (norm clipping)
Cost: smaller steps where it is active; Kim and Park report next to no loss of accuracy at the strength that stops DLG
Broken by: any attack with a cosine loss, to which a global clip is invisible (Geiping et al. 2020, arXiv 2003.14053)
Limits: stops only who matches values: natural falls to 7.5 dB at norm 0.1, who knows it has 44 as without
(scenarios/sweeps/defenses.toml)
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from fedleak.defenses._tensors import finite_floats, map_floats
from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses
from fedleak.observation import Tensors


def _none_is_infinite(value: Any) -> Any:
    # JSON has no infinity: a scenario that travels as JSON brings inf as null.
    return math.inf if value is None else value


InfiniteAsNull = Annotated[float, Field(allow_inf_nan=True), BeforeValidator(_none_is_infinite)]


@defenses.register
class Clipping(Defense):
    """Clip the update; see the module for formula and source."""

    name = "clipping"
    identity = {"max_norm": math.inf}

    class Config(DefenseConfig):
        """Parameters."""

        max_norm: InfiniteAsNull = Field(
            gt=0, description="largest L2 norm, or largest |entry| for scope 'value', in the update's units; inf for no limit"
        )
        scope: Literal["global", "layer", "value"] = Field(
            default="global",
            description="global: the norm of all entries together; layer: of each named tensor on its own; value: each entry",
        )

    config: Config

    def on_update(self, update: Tensors, situation: Situation) -> Tensors:
        """Return the clipped update."""
        limit = self.config.max_norm
        norms = {name: l2_norm(tensor) for name, tensor in finite_floats(self.name, update).items()}
        total = math.hypot(*norms.values())

        def clip(name: str, tensor: Tensor) -> Tensor:
            if self.config.scope == "value":
                return tensor.clamp(-limit, limit)
            norm = total if self.config.scope == "global" else norms[name]
            return tensor.clone() if norm <= limit else tensor * (limit / norm)

        return map_floats(self.name, update, clip)


def l2_norm(tensor: Tensor) -> float:
    """Return the L2 norm, computed in double precision so that large single-precision values do not overflow."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
