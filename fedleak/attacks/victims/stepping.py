"""The steps of a client's optimiser as functions of the gradients, so that whoever guesses them can differentiate through them.

Formula: those of ``torch.optim``: SGD (momentum, dampening, nesterov, weight decay), Adam, AdamW (amsgrad too), Adamax, RMSprop
and Adagrad; each gradient scaled by min(1, c / |g|) before, where the client clips
Source: PyTorch's own definitions, each tested against PyTorch's class
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedleak.errors import AttackError
from fedleak.local.optimisers import plain
from fedleak.observation import LocalTraining

_TINY = 1e-30  # under a root, whose slope at zero is infinite
KNOWN = ("sgd", "adam", "adamw", "adamax", "rmsprop", "adagrad")


@dataclass(frozen=True)
class State:
    """What an optimiser remembers between steps: lists by parameter, empty before the first."""

    number: int = 0
    first: list[Tensor] = field(default_factory=list)
    second: list[Tensor] = field(default_factory=list)
    most: list[Tensor] = field(default_factory=list)


class Stepping:
    """A client's optimiser.

    Parameters
    ----------
    local : LocalTraining
        Names it, with its rates and its clipping.

    Raises
    ------
    AttackError
        If its steps are not known here.
    """

    def __init__(self, local: LocalTraining) -> None:
        spec: Mapping[str, Any] = local.optimizer or {"name": "sgd"}
        self._name, self._options = plain(spec["name"]), spec
        self._rates, self._most = local.step_rates, local.gradient_clipping
        unknown = [key for key in ("centered", "decoupled_weight_decay") if spec.get(key)]
        if self._name not in KNOWN or unknown:
            what = f"'{spec['name']}'" + (f" with {unknown[0]}" if unknown else "")
            raise AttackError(f"no attack follows the steps of {what} yet; those of {', '.join(KNOWN)} can be")

    def step(self, at: Sequence[Tensor], gradient: Sequence[Tensor], state: State) -> tuple[list[Tensor], State]:
        """Return the parameters and the optimiser's state after a step; differentiable.

        Parameters
        ----------
        at, gradient : sequence of Tensor
            Parameters, and their gradient before clipping.
        state : State
            ``State()`` before the first.
        """
        rate, options = self._rates[state.number], self._options
        along = clipped(gradient, self._most)
        if options.get("maximize"):
            along = [-value for value in along]
        decay = float(options.get("weight_decay", 0.01 if self._name == "adamw" else 0.0))
        if self._name == "adamw":
            at = [value * (1 - rate * decay) for value in at] if decay else at
        elif decay:
            along = [value + decay * weight for value, weight in zip(along, at, strict=True)]
        direction, state = getattr(self, f"_{self._name}")(along, state)
        return [value - rate * moved for value, moved in zip(at, direction, strict=True)], state

    def _sgd(self, along: list[Tensor], state: State) -> tuple[list[Tensor], State]:
        momentum = float(self._options.get("momentum", 0.0))
        after = State(state.number + 1)
        if not momentum:
            return along, after
        kept = 1 - float(self._options.get("dampening", 0.0))
        first = [momentum * m + kept * g for m, g in zip(state.first, along, strict=True)] if state.number else list(along)
        after.first.extend(first)
        return [g + momentum * m for g, m in zip(along, first, strict=True)] if self._options.get("nesterov") else first, after

    def _adam(self, along: list[Tensor], state: State) -> tuple[list[Tensor], State]:
        beta, gamma = self._options.get("betas", (0.9, 0.999))
        eps, number = float(self._options.get("eps", 1e-8)), state.number + 1
        before = state.first or [torch.zeros_like(g) for g in along]
        squares = state.second or [torch.zeros_like(g) for g in along]
        first = [beta * m + (1 - beta) * g for m, g in zip(before, along, strict=True)]
        second = [gamma * v + (1 - gamma) * g.square() for v, g in zip(squares, along, strict=True)]
        most = [torch.maximum(a, b) for a, b in zip(state.most or second, second, strict=True)]
        used = most if self._options.get("amsgrad") else second
        size = [(v + _TINY).sqrt() / (1 - gamma**number) ** 0.5 + eps for v in used]
        direction = [m / (1 - beta**number) / s for m, s in zip(first, size, strict=True)]
        return direction, State(number, first, second, most if self._options.get("amsgrad") else [])

    _adamw = _adam

    def _adamax(self, along: list[Tensor], state: State) -> tuple[list[Tensor], State]:
        beta, gamma = self._options.get("betas", (0.9, 0.999))
        eps, number = float(self._options.get("eps", 1e-8)), state.number + 1
        before = state.first or [torch.zeros_like(g) for g in along]
        norms = state.second or [torch.zeros_like(g) for g in along]
        first = [beta * m + (1 - beta) * g for m, g in zip(before, along, strict=True)]
        second = [torch.maximum(gamma * v, g.abs() + eps) for v, g in zip(norms, along, strict=True)]
        return [m / (1 - beta**number) / v for m, v in zip(first, second, strict=True)], State(number, first, second)

    def _rmsprop(self, along: list[Tensor], state: State) -> tuple[list[Tensor], State]:
        alpha, eps = float(self._options.get("alpha", 0.99)), float(self._options.get("eps", 1e-8))
        momentum, number = float(self._options.get("momentum", 0.0)), state.number + 1
        squares = state.second or [torch.zeros_like(g) for g in along]
        second = [alpha * v + (1 - alpha) * g.square() for v, g in zip(squares, along, strict=True)]
        direction = [g / ((v + _TINY).sqrt() + eps) for g, v in zip(along, second, strict=True)]
        if momentum and state.number:
            direction = [momentum * m + d for m, d in zip(state.first, direction, strict=True)]
        return direction, State(number, direction if momentum else [], second)

    def _adagrad(self, along: list[Tensor], state: State) -> tuple[list[Tensor], State]:
        eps, number = float(self._options.get("eps", 1e-10)), state.number + 1
        begun = float(self._options.get("initial_accumulator_value", 0.0))
        squares = state.second or [torch.full_like(g, begun) for g in along]
        second = [v + g.square() for v, g in zip(squares, along, strict=True)]
        slower = 1 + state.number * float(self._options.get("lr_decay", 0.0))
        direction = [g / ((v + _TINY).sqrt() + eps) / slower for g, v in zip(along, second, strict=True)]
        return direction, State(number, [], second)


def clipped(gradient: Sequence[Tensor], most: float | None) -> list[Tensor]:
    """Return a gradient as ``torch.nn.utils.clip_grad_norm_`` leaves it; as it is where nothing is clipped."""
    if most is None:
        return list(gradient)
    norm = torch.stack([value.square().sum() for value in gradient]).sum().add(_TINY).sqrt()
    factor = (most / (norm + 1e-6)).clamp_max(1.0)
    return [value * factor for value in gradient]


def first_step(local: LocalTraining) -> tuple[float, float] | None:
    """Return ``(a, eps)`` of ``u = g / (a |g| + eps)``, what an adaptive optimiser's first step is in units of the rate.

    ``None`` where it is of another form.
    """
    spec = local.optimizer or {"name": "sgd"}
    name = plain(spec["name"])
    eps = float(spec.get("eps", 1e-10 if name == "adagrad" else 1e-8))
    if name in ("adam", "adamw", "adamax"):
        return 1.0, eps
    if name == "adagrad" and not spec.get("initial_accumulator_value"):
        return 1.0, eps
    if name == "rmsprop" and not spec.get("centered"):
        return (1 - float(spec.get("alpha", 0.99))) ** 0.5, eps
    return None
