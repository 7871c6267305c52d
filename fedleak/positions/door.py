"""The one way in: a round's replies are sifted once, their arrays decoded once, and handed to whoever needs them."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedleak.positions.base import Honest, Position
from fedleak.wire.arrays import SentModel
from fedleak.wire.directory import Directory
from fedleak.wire.received import Failure, Received
from fedleak.wire.replies import sift
from fedleak.wire.strategy import StrategyWrapper


class Aggregator(StrategyWrapper):
    """A strategy that is handed what its door received; this one gives the wrapped strategy all replies as they came."""

    def aggregate(self, received: Received) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next global model and the metrics, or ``None`` where there are none."""
        return self.strategy.aggregate_train(received.round, list(received.replies))


class Door(StrategyWrapper):
    """Wrap a strategy outermost: Flower's own wrappers replace the content of replies in place.

    What is received is kept for as long as the round is aggregated, and no longer.

    Parameters
    ----------
    strategy : Strategy
        Trains; an :class:`Aggregator` is handed the replies sifted and decoded, any other as they came.
    directory : Directory
        Which node holds which partition.
    most_examples : int
        A reply that claims more images than this is refused.
    summed : bool
        Whether secure aggregation sends one reply for all clients of a round.
    position : Position, optional
        Where the server stands; honest by default.

    Attributes
    ----------
    asked : list of int
        Partition ids of the clients that the latest round was sent to, ascending.
    failures : tuple of Failure
        Of that round.
    undefended : list of int
        Partition ids of those of its clients whose defenses left the update as it was.
    bytes_received : int
        Size of its replies, as serialised arrays.
    position : Position
        As given.
    """

    def __init__(
        self,
        strategy: Strategy,
        directory: Directory,
        *,
        most_examples: int,
        summed: bool = False,
        position: Position | None = None,
    ) -> None:
        super().__init__(strategy)
        self.asked: list[int] = []
        self.failures: tuple[Failure, ...] = ()
        self.undefended: list[int] = []
        self.bytes_received = 0
        self.position: Position = position if position is not None else Honest()
        self._directory = directory
        self._most_examples = most_examples
        self._summed = summed
        self._sent: dict[int, SentModel] = {}
        self._grid: Grid | None = None

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Keep what goes out, and to whom."""
        self._grid, self._sent = grid, {}
        models = {id(arrays): SentModel(arrays)}
        messages = []
        for message in super().configure_train(server_round, arrays, config, grid):
            node = message.metadata.dst_node_id
            own = self.position.model_for(server_round, node, arrays)
            if id(own) not in models:
                models[id(own)] = SentModel(own)
            self._sent[node] = models[id(own)]
            messages.append(message if own is arrays else _with(message, own))
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Sift and decode what came in, show it to the server's position, and have it aggregated."""
        received = self._receive(server_round, tuple(replies))
        self.asked, self.failures, self.bytes_received = received.asked, received.failures, received.bytes
        self.undefended = received.undefended
        self._sent = {}
        if self._grid is not None:
            self.position.see(received, self._grid)
        if isinstance(self.strategy, Aggregator):
            return self.strategy.aggregate(received)
        return self.strategy.aggregate_train(server_round, list(received.replies))

    def _receive(self, server_round: int, replies: tuple[Message, ...]) -> Received:
        self._directory.learn(self._sent)
        known = {node: model for node, model in self._sent.items() if self._directory.knows(node)}
        sent = {self._directory.partition(node): model for node, model in known.items()}
        own = [reply for reply in replies if reply.metadata.src_node_id in known]
        good, failures = sift(own, sent, self._directory, self._most_examples, summed=self._summed)
        size = sum(
            record.count_bytes() for reply in replies if not reply.has_error() for record in reply.content.array_records.values()
        )
        return Received(
            server_round, sent, good, failures, replies, tuple(node for node in self._sent if node not in known), size
        )


def _with(message: Message, model: ArrayRecord) -> Message:
    """Return a message of its own, with another model: those of a round share their content."""
    [name] = message.content.array_records
    content = RecordDict({**message.content, name: model})
    return Message(content, message.metadata.dst_node_id, message.metadata.message_type, group_id=message.metadata.group_id)
