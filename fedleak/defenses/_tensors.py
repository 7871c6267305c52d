"""What the defenses on the update share: go over its float tensors, and refuse what is not finite."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedleak.errors import DefenseError
from fedleak.observation import Tensors


def finite_floats(defense: str, update: Tensors) -> Tensors:
    """Return the float tensors of ``update`` by name.

    Raises
    ------
    DefenseError
        If one holds NaN or an infinity: thresholds, norms and scales computed from it would mean nothing.
    """
    floats = {name: tensor for name, tensor in update.items() if tensor.is_floating_point()}
    for name, tensor in floats.items():
        if not torch.isfinite(tensor).all():
            raise DefenseError(
                f"defense '{defense}': '{name}' holds NaN or infinity, expected finite values; "
                "has local training diverged? Try a lower local.learning_rate"
            )
    return floats


def map_floats(defense: str, update: Tensors, change: Callable[[str, Tensor], Tensor]) -> Tensors:
    """Return ``update`` with every float tensor replaced by ``change(name, tensor)`` in the tensor's own dtype.

    ``change`` is given a tensor of at least single precision, and must not write to it. Tensors that are not float
    are copied unchanged.

    Raises
    ------
    DefenseError
        If a float tensor is not finite, before or after.
    """
    floats = finite_floats(defense, update)
    changed = {name: tensor.clone() for name, tensor in update.items()}
    for name, tensor in floats.items():
        value = change(name, widened(tensor)).to(tensor.dtype)
        if not torch.isfinite(value).all():
            raise DefenseError(f"defense '{defense}': '{name}' overflows {tensor.dtype} after it; lower the defense's strength")
        changed[name] = value
    return changed


def widened(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in at least single precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
