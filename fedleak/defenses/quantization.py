"""Send the update in a number format of fewer bits.

Formula: g <- float(format(g)); int8: s * round(g / s) with s = max|g| / 127 per tensor; fp16 and bf16 first clamp to their range
Source: Zhu, Liu, Han 2019, "Deep Leakage from Gradients", arXiv 1906.08935 (section on defenses: half precision and int8)
Cost: the paper finds that half precision keeps accuracy and leaks, and that int8 stops its attack at a loss of accuracy
Broken by: Yue et al. 2023, arXiv 2206.04055 (the quantiser inside the attack); fp16 and bf16 already by Zhu et al. 2019
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedleak.defenses._tensors import map_floats
from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses
from fedleak.observation import Tensors

_FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BITS = {"fp16": 16.0, "bf16": 16.0, "int8": 8.0}


@defenses.register
class Quantization(Defense):
    """Round the update to a coarser format and back; see the module for formula and source."""

    name = "quantization"
    identity = {"format": "fp32"}

    class Config(DefenseConfig):
        """Parameters."""

        format: Literal["fp32", "fp16", "bf16", "int8"] = Field(
            description="format to round to; values keep their own dtype, and fp32 changes no single-precision update"
        )

    config: Config

    def on_update(self, update: Tensors, situation: Situation) -> Tensors:
        """Return the update as it is after the round trip through the format."""
        target = _FLOATS.get(self.config.format)

        def round_trip(_name: str, tensor: Tensor) -> Tensor:
            return int8_round_trip(tensor) if target is None else float_round_trip(tensor, target)

        return map_floats(self.name, update, round_trip)

    def value_bits(self, before: float | None) -> float | None:
        """Return the bits of the format; ``before`` for fp32, which rounds no single-precision value."""
        return _BITS.get(self.config.format, before)


def float_round_trip(tensor: Tensor, target: torch.dtype) -> Tensor:
    """Round to ``target`` and back; what lies beyond its range becomes its largest finite value."""
    largest = torch.finfo(target).max
    return tensor.clamp(-largest, largest).to(target).to(tensor.dtype)


def int8_round_trip(tensor: Tensor) -> Tensor:
    """Round to the nearest of the 255 levels ``k * max|tensor| / 127``, k from -127 to 127 (halves to even)."""
    if tensor.numel() == 0:
        return tensor.clone()
    # In double precision the scale of a single-precision tensor cannot underflow to zero.
    exact = tensor.double()
    scale = exact.abs().max() / 127
    if scale == 0:
        return torch.zeros_like(tensor)
    return ((exact / scale).round().clamp(-127, 127) * scale).to(tensor.dtype)
