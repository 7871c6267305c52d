"""Looks for what a network adds to the output of one of its modules, on a forward pass that ends where it is found."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedleak.models.trial import tried
from fedleak.observation import Tensors


class FoundError(Exception):
    """Raised by a watcher to end the pass."""


class Watcher(Protocol):
    """What looks on."""

    def embedded(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """See what the module that is looked at took and returned."""

    def entered(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See what any module is handed, before it runs."""


def watch(model: nn.Module, module: nn.Module, inputs: Tensor, tables: Tensors, watcher: Callable[[Tensors], Watcher]) -> Any:
    """Return a watcher that has seen the model run on ``inputs``, to its end or until it found what it looks for.

    Parameters
    ----------
    model : Module
        Left as it was.
    module : Module
        The one of its modules whose output the watcher is told.
    inputs : Tensor
        Model inputs.
    tables : dict of str to Tensor
        Parameters that may be what is added. They are drawn anew for the pass, so that none that is zero, as after a fresh start,
        is taken for another.
    watcher : callable
        Given the drawn tables, returns what looks on.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(value.shape, generator=generator).to(value) for name, value in tables.items()}
    looking = watcher(drawn)
    handles = [each.register_forward_pre_hook(looking.entered, with_kwargs=True) for each in model.modules()]
    handles.append(module.register_forward_hook(looking.embedded))
    try:
        with torch.no_grad(), suppress(FoundError):
            tried(model, inputs, drawn)
    finally:
        for handle in handles:
            handle.remove()
    return looking
