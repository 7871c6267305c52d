"""What an update says of the gradients behind it, where they are no plain mean: of adaptive optimisers.

Formula: the first step of Adam and its kin moves by eta u, u = g / (a |g| + eps), so that |g| = eps |u| / (1 - a |u|) with its
sign; where rounding of the weights hides 1 - a |u|, no more than the sign and a least |g| is known. Of several steps:
(W_0 - W_T) / sum eta
Source: the optimisers' definitions (Adam: Kingma and Ba, arXiv 1412.6980); fedleak's own reading
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedleak.attacks.victims.stepping import first_step
from fedleak.errors import AttackError
from fedleak.local.optimisers import plain
from fedleak.observation import LocalTraining, Observation, Tensors

_ROUNDING = 6e-8  # of float32, relative to a weight: half a unit in its last place
_SURE = 0.1
"""Relative error of 1 - a |u| up to which the gradient behind it counts as known."""


@dataclass(frozen=True)
class FirstStep:
    """The gradient of one step of an adaptive optimiser, as far as the update tells it.

    Attributes
    ----------
    gradient : dict of str to Tensor
        By parameter; where it is bounded only, the bound with the sign.
    bounded : dict of str to Tensor
        Boolean: entries of which only the sign and a least size are known.
    """

    gradient: Tensors
    bounded: Tensors


def direction_of(observation: Observation) -> Tensors:
    """Return the mean gradient that an update is, or, where it is none, the way it went in units of the rates' sum.

    Raises
    ------
    AttackError
        If it holds weights, and the local training is not granted; or it is a sum of clients with an adaptive optimiser.
    """
    local = observation.local
    if observation.kind == "gradient" or local is None or local.path is not None:
        return observation.gradient()
    if observation.clients:
        raise AttackError("a sum of several clients' adaptive steps is no step of theirs together: nothing is known of it here")
    reach = sum(local.step_rates)
    return {name: (value - observation.update[name]) / reach for name, value in observation.parameters.items()}


def first_step_of(observation: Observation) -> FirstStep | None:
    """Return what one step of an adaptive optimiser says of the gradient; ``None`` for any other update.

    Raises
    ------
    AttackError
        If it is one step of an optimiser whose first step is of another form, and is not known to anybody here.
    """
    local = observation.local
    if observation.kind == "gradient" or local is None or local.steps > 1 or local.path is not None or observation.clients:
        return None
    form = first_step(local)
    if form is None:
        assert local.optimizer is not None
        raise AttackError(f"nothing is known here of what a step of '{local.optimizer['name']}' says of its gradient")
    return _read(observation, local, *form)


def _read(observation: Observation, local: LocalTraining, a: float, eps: float) -> FirstStep:
    assert local.optimizer is not None
    rate, spec = local.step_rates[0], local.optimizer
    coupled = plain(spec["name"]) != "adamw"
    decay = float(spec.get("weight_decay", 0.0 if coupled else 0.01))
    sign = -1.0 if spec.get("maximize") else 1.0
    gradient, bounded = {}, {}
    for name, value in observation.parameters.items():
        start, end = value.double(), observation.update[name].double()
        rounding = _ROUNDING * start.abs() / rate + 1e-7
        moved = (start * (1.0 if coupled else 1 - rate * decay) - end) / rate
        size = (a * moved.abs()).clamp_max(1.0)
        left = 1 - size
        known = left > rounding / _SURE
        # Where it is not known, as large at least as rounding allows.
        found = eps * moved.abs() / torch.where(known, left, left + rounding)
        found = sign * found * moved.sign()
        gradient[name] = (found - decay * start if coupled and decay else found).to(value.dtype)
        bounded[name] = ~known
    return FirstStep(gradient, bounded)
