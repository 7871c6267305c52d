"""Through quantisation: a guess fits where it would have been rounded to what was received.

Formula: D(g + (grad - nearest point of the cell of g), g), the cell being all that is rounded to g: half a step to each side for
fp16, bf16 and int8, the half line of the same sign for sign; for qsgd, whose cells overlap, D(grad, g) with the
variance of its rounding, step |grad| - grad^2 at most; and the norm of each bucket, or the mean magnitude of each tensor for
sign, which what is received tells, as one more entry of the gradient
Source: Yue et al. 2023, "Gradient Obfuscation Gives a False Sense of Security in FL", arXiv 2206.04055; cells are fedleak's own
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from fedleak.attacks.counters._noise import NoiseCounter
from fedleak.attacks.counters.base import Countered, counters, unit
from fedleak.defenses.quantization import INT8_LEVELS, Quantization
from fedleak.errors import AttackError

_HIDING = frozenset({"gradient-pruning", "deep-gradient-compression"})
_BITS = {"fp16": 11, "bf16": 8}  # of the significand
_SMALLEST = {"fp16": 2.0**-24, "bf16": 2.0**-133}  # steps
_UNEVEN = (1e-4, 1e-2, 5e-2)  # of a step: by single precision, and by that of weights that a change is taken of
_AVERAGE = 0.2113  # share of a step whose variance is that of a random share, 1 / 6


@counters.register
class QuantizationCounter(NoiseCounter):
    """Knows the format, and reads steps, norms and mean magnitudes from what was received."""

    name: ClassVar[str] = "quantization"
    config: Quantization.Config

    def observe(self, victim: Countered) -> None:
        """Find the cells; match what is known exactly beside the entries."""
        form, per = self.config.format, unit(self.observation)
        received = victim.observed
        self._known: list[Tensor] = []
        if form in _BITS:
            self._half = [_step(value * per, form) / (2 * per) for value in received]
        elif form == "int8":
            self._half = [value.abs().amax() / (2 * INT8_LEVELS) if value.numel() else value for value in received]
        elif form == "sign":
            self._known = [value.abs().amax().view(1) if value.numel() else value.flatten() for value in received]
        elif form == "qsgd":
            units = [_units(value, self.config.bucket, self.config.levels) for value in received]
            self._known = [value * self.config.levels for value in units]
            self._units = units
        earlier = victim.counters[: victim.counters.index(self)]
        if any(isinstance(one, NoiseCounter) or one.name in _HIDING for one in earlier):
            # Magnitudes of what was noisy or incomplete before the rounding are not those of the gradient.
            self._known = []
        victim.observed = [*received, *self._known]
        super().observe(victim)

    def guess(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Add mean magnitudes or norms."""
        if not self._known:
            return guessed
        if self.config.format == "sign":
            known = [value.abs().mean().view(1) if value.numel() else value.flatten() for value in guessed]
        elif self.config.format == "qsgd":
            known = [_norms(value, self.config.bucket) for value in guessed]
        else:
            return guessed
        return [*guessed, *known]

    def compare(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Leave of each entry what is outside the cell."""
        if self.config.format == "sign":
            entries = len(guessed) - len(self._known)
            found = [
                torch.where(seen == 0, value, seen + seen.sign() * (value * seen.sign()).clamp_max(0))
                for value, seen in zip(guessed[:entries], observed, strict=False)
            ]
            return [*found, *guessed[entries:]]
        if self.config.format in _BITS or self.config.format == "int8":
            return [
                seen + (value - seen) - (value - seen).clamp(-half, half)
                for value, seen, half in zip(guessed, observed, self._half, strict=True)
            ]
        return guessed

    def variances(self, observed: Sequence[Tensor]) -> list[Tensor]:
        """Return the variance of stochastic rounding; that to the nearest has none, and the norms have none."""
        if self.config.format != "qsgd":
            return [value.new_zeros(()) for value in observed]
        entries = [_rounding(seen, step, self.config.bucket) for seen, step in zip(observed, self._units, strict=False)]
        return [*entries, *(value.new_zeros(()) for value in self._known)]


def _step(values: Tensor, form: str) -> Tensor:
    """Return the distance of neighbouring numbers of the format at each value."""
    exponents = torch.frexp(values).exponent
    return torch.ldexp(torch.ones_like(values), exponents - _BITS[form]).clamp_min(_SMALLEST[form])


def _norms(values: Tensor, bucket: int) -> Tensor:
    """Return the norm of each bucket of consecutive entries."""
    tiny = torch.finfo(values.dtype).tiny  # the root has no derivative at zero
    parts = [part.square().sum().clamp_min(tiny).sqrt() for part in torch.split(values.flatten(), bucket)]
    return torch.stack(parts) if parts else values.flatten()


def _units(values: Tensor, bucket: int, levels: int) -> Tensor:
    """Return for each bucket the step whose multiples its values are: the largest one that the levels allow."""
    found = [_unit(part.abs(), levels) for part in torch.split(values.detach().flatten().double(), bucket)]
    return torch.tensor(found).to(values) if found else values.flatten()


def _unit(magnitudes: Tensor, levels: int) -> float:
    sent = magnitudes[magnitudes > 0]
    if len(sent) == 0:
        return 0.0
    smallest = float(sent.min())
    for uneven in _UNEVEN:
        for number in range(1, levels + 1):
            multiples = sent * (number / smallest)
            if float((multiples - multiples.round()).abs().max()) < uneven:
                return smallest / number
    raise AttackError(
        f"the update is not of QSGD with {levels} levels: its values are no multiples of one step; "
        "is a defense missing from the scenario, or is it another's?"
    )


def _rounding(received: Tensor, units: Tensor, bucket: int) -> Tensor:
    """Return the variance of rounding at random to multiples of ``units``, as large as it is on average in each bucket.

    An entry at a share f of the step has f (1 - f) of the step squared; where most entries are sent as zero f is their mean.
    """
    parts = []
    for part, step in zip(torch.split(received.flatten(), bucket), units, strict=True):
        share = (part.abs().mean() / step if step > 0 else step).clamp_max(_AVERAGE)
        parts.append((share * (1 - share) * step.square()).expand(part.shape))
    return torch.cat(parts).view(received.shape) if parts else received
