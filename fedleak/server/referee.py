"""What fedleak adds around any Flower strategy, curious or not: seeded sampling, ordered replies, counted failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedleak.errors import ReplyError
from fedleak.seeding import Seed
from fedleak.server.replies import Directory, Failure, check_reply
from fedleak.server.wrapper import StrategyWrapper


class Referee(StrategyWrapper):
    """Wrap a strategy so that its sampling is seeded and bad replies are dropped, counted and named.

    Flower samples clients with the global ``random`` and hides clients that fail; both would make a run's numbers
    depend on things that nobody sees.

    Parameters
    ----------
    strategy : Strategy
        The strategy that aggregates.
    directory : Directory
        Which node holds which partition.
    seed : Seed
        Sampling and the strategy's own noise derive from it.

    Attributes
    ----------
    asked : list of int
        Partition ids of the clients that the current round was sent to.
    failures : list of Failure
        Of the current round.
    bytes_received : int
        Size of the current round's replies, as serialised arrays.
    """

    def __init__(self, strategy: Strategy, directory: Directory, seed: Seed) -> None:
        super().__init__(strategy)
        self.asked: list[int] = []
        self.failures: list[Failure] = []
        self.bytes_received = 0
        self._directory = directory
        self._seed = seed
        self._sent = ArrayRecord()

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Sample clients by the scenario's seed."""
        self._sent = arrays
        with self._seed.derive("sampling", server_round).isolated():
            messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        self.asked = sorted(self._directory.partition(message.metadata.dst_node_id) for message in messages)
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Drop and count replies that the protocol does not allow, order the rest by partition, and delegate."""
        self.failures, self.bytes_received = [], 0
        good: dict[int, Message] = {}
        silent = set(self.asked)
        for reply in replies:
            client = self._directory.partition(reply.metadata.src_node_id)
            silent.discard(client)
            if not reply.has_error():
                self.bytes_received += sum(record.count_bytes() for record in reply.content.array_records.values())
            try:
                check_reply(reply, self._sent)
                good[client] = reply
            except ReplyError as error:
                self.failures.append(Failure(client, str(error)))
        self.failures += [Failure(client, "no reply") for client in silent]
        self._drop_odd_metrics(good)
        self.failures.sort(key=lambda failure: failure.client)
        if not good:
            return None, None
        with self._seed.derive("aggregation", server_round).isolated():  # Flower's privacy strategies draw noise here
            arrays, metrics = self.strategy.aggregate_train(server_round, [good[client] for client in sorted(good)])
        return self._as_sent(arrays), metrics

    def _drop_odd_metrics(self, good: dict[int, Message]) -> None:
        # Flower refuses a whole round if the names of the metrics differ between replies.
        names = {client: _metric_names(good[client]) for client in sorted(good)}
        usual = Counter(names.values()).most_common(1)[0][0] if names else ()
        for client, found in names.items():
            if found != usual:
                self.failures.append(Failure(client, f"metrics {list(found)}, while the other clients sent {list(usual)}"))
                del good[client]

    def _as_sent(self, arrays: ArrayRecord | None) -> ArrayRecord | None:
        # Averaging turns BatchNorm's integer counters into floats; the next round must send what this one sent.
        if arrays is None:
            return None
        restored = ArrayRecord()
        for name, array in arrays.items():
            values, dtype = array.numpy(), self._sent[name].numpy().dtype
            if values.dtype != dtype:
                values = np.rint(values).astype(dtype) if dtype.kind in "iu" else values.astype(dtype)
            restored[name] = Array(np.ascontiguousarray(values).reshape(values.shape))
        return restored


def _metric_names(reply: Message) -> tuple[str, ...]:
    return tuple(sorted(next(iter(reply.content.metric_records.values()))))
