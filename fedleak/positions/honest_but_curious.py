"""The honest-but-curious server: follows the protocol to the letter, and keeps what it legitimately received."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedleak.wire.strategy import StrategyWrapper


class Onlooker(Protocol):
    """Who is shown each round's messages."""

    def look(self, server_round: int, sent: ArrayRecord, asked: list[int], replies: list[Message], grid: Grid) -> None:
        """See the global model as sent, to which nodes, and the replies as received; must not change them, nor raise."""


class HonestButCurious(StrategyWrapper):
    """Wrap any Flower strategy; show each round to an onlooker, then delegate.

    The wrapper is outermost, because Flower's own wrappers replace the content of replies in place. The model trained
    with it is bit-identical to the one trained without it.

    Parameters
    ----------
    strategy : Strategy
        The strategy that trains.
    onlooker : Onlooker
        Usually a :class:`fedleak.positions.spy.Spy`, which records and attacks.
    """

    def __init__(self, strategy: Strategy, onlooker: Onlooker) -> None:
        super().__init__(strategy)
        self._onlooker = onlooker
        self._sent = ArrayRecord()
        self._asked: list[int] = []
        self._grid: Grid | None = None

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Keep the global model that goes out, and delegate."""
        self._sent, self._grid = arrays, grid
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._asked = [message.metadata.dst_node_id for message in messages]
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Show the replies to the onlooker, and delegate."""
        received = list(replies)
        if self._grid is not None:
            self._onlooker.look(server_round, self._sent, self._asked, received, self._grid)
        return super().aggregate_train(server_round, received)
