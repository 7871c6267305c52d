"""Where local steps lead: for SGD, the weights after all of them are a known combination of first weights and gradients.

Formula: d_t = g_t + wd W_t;  m_1 = d_1, m_t = mu m_{t-1} + (1 - damp) d_t;  W_{t+1} = W_t - eta_t (d_t + mu m_t  or  m_t)
so that W_0 - W_T = a W_0 + sum_t c_t g_t, with numbers a and c_t that depend on the hyper-parameters alone
Source: torch.optim.SGD's own definition, taken as linear in (W_0, g_1 .. g_T)

What a server can tell of the gradients is then exactly their mean with the weights c_t / sum c, and nothing else: the numbers
are used wherever a plain mean with the rate would be. Momentum makes early steps weigh more, as they go on moving the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fedleak.local.optimisers import plain


@dataclass(frozen=True)
class Path:
    """Local SGD by hyper-parameters.

    Attributes
    ----------
    rates : tuple of float
        Of each step, in parameter units per gradient unit.
    momentum, dampening, weight_decay : float
        As for ``torch.optim.SGD``.
    nesterov, maximize : bool
        The same.
    """

    rates: tuple[float, ...]
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    maximize: bool = False

    @property
    def plain(self) -> bool:
        """Whether it is SGD with one rate and nothing else."""
        return self == Path(self.rates) and len(set(self.rates)) == 1

    @property
    def coefficients(self) -> tuple[float, ...]:
        """``c_t``: how far a unit of each step's gradient has moved the weights in the end."""
        return _coefficients(self)

    @property
    def scale(self) -> float:
        """The sum of the coefficients: how far a unit gradient in all steps moves the weights."""
        return self.rates[0] * len(self.rates) if self.plain else sum(self.coefficients)

    @property
    def weights(self) -> tuple[float, ...]:
        """The share of each step in what the server sees; they sum to 1."""
        if self.plain:
            return (1 / len(self.rates),) * len(self.rates)
        return tuple(value / self.scale for value in self.coefficients)

    @property
    def decay(self) -> float:
        """``a``: the part of the first weights that weight decay has taken; 0 without."""
        return _walk(self, 1.0, 0.0)[-1][1] if self.weight_decay else 0.0

    @property
    def reach(self) -> tuple[float, ...]:
        """Where each step begins, for a unit gradient in all: how far the weights have moved by then."""
        return tuple(moved for moved, _ in _walk(self, 0.0, 1.0)[:-1])

    @property
    def lost(self) -> tuple[float, ...]:
        """The part of the first weights that is lost where each step begins."""
        return tuple(taken for _, taken in _walk(self, 1.0, 0.0)[:-1]) if self.weight_decay else (0.0,) * len(self.rates)


def path_of(optimizer: Mapping[str, Any] | None, rates: Sequence[float]) -> Path | None:
    """Return the path of an optimiser as ``[local]`` names it, or ``None`` where it is no combination: Adam and its kin."""
    if optimizer is None:
        return Path(tuple(rates))
    if plain(optimizer["name"]) != "sgd":
        return None
    known = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
    return Path(tuple(rates), **{name: optimizer[name] for name in known if name in optimizer})


@lru_cache(maxsize=64)
def _walk(path: Path, start: float, gradient: float) -> list[tuple[float, float]]:
    """Return for ``W_0 = start`` and a constant gradient, before each step and at the end: (moved, share of the start lost)."""
    weight, buffer, found = start, None, []
    sign = -1.0 if path.maximize else 1.0
    for rate in path.rates:
        found.append((start - weight, (start - weight) / start if start else 0.0))
        along = sign * gradient + path.weight_decay * weight
        if path.momentum:
            buffer = along if buffer is None else path.momentum * buffer + (1 - path.dampening) * along
            along = along + path.momentum * buffer if path.nesterov else buffer
        weight -= rate * along
    return [*found, (start - weight, (start - weight) / start if start else 0.0)]


@lru_cache(maxsize=64)
def _coefficients(path: Path) -> tuple[float, ...]:
    """Return them by the recurrence read backwards: what a change of weights or momentum at a step does to the end."""
    by_weight, by_buffer, found = 1.0, 0.0, []
    sign = -1.0 if path.maximize else 1.0
    last = len(path.rates) - 1
    for number in range(last, -1, -1):
        rate, kept = path.rates[number], path.momentum
        new = 1.0 if number == 0 else 1 - path.dampening
        if not kept:
            by_along, by_buffer = -rate * by_weight, 0.0
        else:
            # W' = W - rate * (along + mu m', or m'),  m' = mu m + new * along,  along = g + wd W
            through = by_buffer - rate * by_weight * (kept if path.nesterov else 1.0)
            by_along = through * new - (rate * by_weight if path.nesterov else 0.0)
            by_buffer = through * kept
        found.append(-sign * by_along)
        by_weight += path.weight_decay * by_along
    return tuple(reversed(found))
