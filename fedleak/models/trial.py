"""A network that is tried on an input, and left as it was: its modes, its buffers, and the global generators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedleak.seeding import Seed


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode inside the block, and each of its modules back after."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def tried(model: nn.Module, inputs: Tensor, changed: Mapping[str, Tensor] | None = None) -> Any:
    """Return what the model makes of inputs in eval mode, whatever that is.

    Parameters
    ----------
    model : Module
        Of any kind; what it writes into its buffers goes into copies.
    inputs : Tensor
        As it takes them.
    changed : dict of str to Tensor, optional
        Parameters or buffers by name that stand in place of its own.
    """
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    with evaluating(model), Seed(0).isolated():
        return torch.func.functional_call(model, {**buffers, **(changed or {})}, (inputs,))
