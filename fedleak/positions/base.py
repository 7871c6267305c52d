"""Where a server stands: what it sends to each client in place of its strategy's model, and what it makes of what comes back."""

from __future__ import annotations

from typing import Protocol

from flwr.app import ArrayRecord
from flwr.serverapp import Grid

from fedleak.wire.received import Received


class Position(Protocol):
    """What a :class:`~fedleak.positions.door.Door` asks in each round."""

    seconds: float
    """Wall time that the latest look took."""

    def model_for(self, server_round: int, node: int, model: ArrayRecord) -> ArrayRecord:
        """Return the model that a node is sent in place of ``model``, the strategy's; ``model`` itself to send it as it is."""

    def see(self, received: Received, grid: Grid) -> None:
        """Look at what came back, before it is aggregated; must not change it, nor raise."""


class Honest:
    """Sends what the strategy says, and looks at nothing."""

    seconds = 0.0

    def model_for(self, server_round: int, node: int, model: ArrayRecord) -> ArrayRecord:
        """Return ``model``."""
        return model

    def see(self, received: Received, grid: Grid) -> None:
        """Look away."""
