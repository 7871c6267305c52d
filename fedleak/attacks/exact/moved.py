"""What local training did to some parameters, in any one scale: all that equations need which hold for sums over steps.

Formula: of a gradient, itself; of weights W_0 - W_T - a W_0, with a the part that weight decay is known to have taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedleak.errors import AttackError
from fedleak.observation import Observation, Tensors

_ROUNDING = 3e-8
"""Root mean square of float32's rounding error, relative to the value."""


def moved(observation: Observation, names: Sequence[str], device: torch.device) -> tuple[Tensors, Tensors | None]:
    """Return the change of each of ``names`` in float64, and the error that rounding the weights left in it; ``None`` for none.

    Raises
    ------
    AttackError
        If one did not travel, or is not finite.
    """
    if missing := [name for name in names if name not in observation.update]:
        raise AttackError(f"the update holds no '{missing[0]}', which the closed form needs")
    found = {name: observation.update[name].detach().to(device, torch.float64) for name in names}
    if not all(bool(value.isfinite().all()) for value in found.values()):
        raise AttackError("the update is not finite")
    if observation.kind == "gradient":
        return found, None
    path = observation.local.path if observation.local is not None else None
    left = 1 - (path.decay if path is not None else 0.0)
    sent = {name: observation.parameters[name].detach().to(device, torch.float64) for name in names}
    return {name: left * sent[name] - value for name, value in found.items()}, {
        name: _ROUNDING * value.abs() for name, value in found.items()
    }
