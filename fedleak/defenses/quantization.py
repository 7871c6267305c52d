"""Send the update in a number format of fewer bits.

Formula: g <- float(format(g)); int8: s * round(g / s) with s = max|g| / 127 per tensor; fp16 and bf16 first clamp to their range;
sign: mean|g| * sign(g) per tensor; qsgd: |b|_2 * sign(g_i) * k_i / levels for each bucket b of consecutive entries of a tensor,
with k_i = floor(t) or floor(t) + 1 drawn so that its mean is t = levels * |g_i| / |b|_2
Source: Zhu, Liu, Han 2019, "Deep Leakage from Gradients", arXiv 1906.08935 (half precision and int8); Bernstein et al. 2018,
"signSGD", arXiv 1802.04434, with the scale of Karimireddy et al. 2019, arXiv 1901.09847; Alistarh et al. 2017, "QSGD",
arXiv 1610.02132
Cost: half precision keeps accuracy, and Zhu et al. find that int8 loses some; qsgd is unbiased, with more variance the fewer
its levels and the longer its buckets; sign is biased, and its errors are not fed back here
Broken by: Yue et al. 2023, arXiv 2206.04055 (the quantiser inside the attack); fp16 and bf16 already by Zhu et al. 2019
Limits: who knows it has 45 dB of fp16 and int8, as without, and 24 to 25 of sign and QSGD, mean image 13
(scenarios/sweeps/defenses.toml); sign costs 4 to 6 points of accuracy (scenarios/sweeps/utility.toml)
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedleak.defenses._tensors import map_floats
from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses
from fedleak.observation import Tensors

FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
INT8_LEVELS = 127
_BITS = {"fp16": 16.0, "bf16": 16.0, "int8": 8.0, "sign": 1.0}


@defenses.register
class Quantization(Defense):
    """Round the update to a coarser format and back; see the module for formula and source."""

    name = "quantization"
    identity = {"format": "fp32"}
    excludes = {"quantization": "values that are rounded twice are of the coarser format at best"}
    not_before = dict.fromkeys(
        (
            "gaussian-noise",
            "laplacian-noise",
            "client-dp",
            "clipping",
            "gradient-pruning",
            "random-masking",
            "deep-gradient-compression",
        ),
        "what is sent must be of the format, and values that are changed after rounding are not",
    )

    class Config(DefenseConfig):
        """Parameters."""

        format: Literal["fp32", "fp16", "bf16", "int8", "sign", "qsgd"] = Field(
            description="format to round to; values keep their own dtype, and fp32 changes no single-precision update"
        )
        levels: int = Field(default=15, ge=1, description="qsgd: magnitudes above zero; 15 and the sign make about 5 bits")
        bucket: int = Field(default=512, ge=1, description="qsgd: entries that share a norm, as in the paper's experiments")

    config: Config

    def on_update(self, update: Tensors, situation: Situation) -> Tensors:
        """Return the update as it is after the round trip through the format."""
        config = self.config

        def round_trip(name: str, tensor: Tensor) -> Tensor:
            if config.format in FLOATS:
                return float_round_trip(tensor, FLOATS[config.format])
            if config.format == "int8":
                return int8_round_trip(tensor)
            if config.format == "sign":
                return tensor.abs().mean() * tensor.sign() if tensor.numel() else tensor.clone()
            return qsgd_round_trip(tensor, config.levels, config.bucket, situation.seed.derive(name).generator())

        return map_floats(self.name, update, round_trip)

    def value_bits(self, before: float | None) -> float | None:
        """Return the bits of the format; ``before`` for fp32, which rounds no single-precision value."""
        if self.config.format == "qsgd":
            return math.log2(2 * self.config.levels + 1)
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
    scale = exact.abs().max() / INT8_LEVELS
    if scale == 0:
        return torch.zeros_like(tensor)
    return ((exact / scale).round().clamp(-INT8_LEVELS, INT8_LEVELS) * scale).to(tensor.dtype)


def qsgd_round_trip(tensor: Tensor, levels: int, bucket: int, generator: torch.Generator) -> Tensor:
    """Round each magnitude to one of the two multiples next to it of its bucket's norm over ``levels``, at random, without bias.

    Parameters
    ----------
    tensor : Tensor
        Any shape; its entries in order are cut into buckets, of which the last may be shorter.
    levels, bucket : int
        See :class:`Quantization`.
    generator : Generator
        On the CPU; advanced.
    """
    rounded = []
    for values in torch.split(tensor.flatten().double(), bucket):
        unit = torch.linalg.vector_norm(values) / levels
        drawn = torch.rand(values.shape, generator=generator, dtype=torch.float64).to(values.device)
        # Where all is zero there is nothing to round, and 0 / 0 must not make it NaN.
        exact = values.abs() / torch.where(unit > 0, unit, 1.0)
        below = exact.floor()
        rounded.append(values.sign() * unit * (below + (drawn < exact - below)))
    return torch.cat(rounded).view(tensor.shape).to(tensor.dtype) if rounded else tensor.clone()
