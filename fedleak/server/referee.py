"""What fedleak adds around any Flower strategy, curious or not: seeded sampling, ordered replies, counted failures, buffers."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.exception import AppExitException
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedleak.errors import FedleakError
from fedleak.runs.folder import Arrays, Row
from fedleak.seeding import Seed
from fedleak.server.costs import Meter
from fedleak.wire.directory import Directory
from fedleak.wire.replies import Failure, sift
from fedleak.wire.strategy import StrategyWrapper


class Referee(StrategyWrapper):
    """Wrap a strategy so that its sampling is seeded, bad replies are dropped, counted and named, and buffers averaged.

    Flower samples clients with the global ``random`` and hides clients that fail; both would make a run's numbers
    depend on things that nobody sees. Its strategies treat BatchNorm's statistics and integer counters as parameters:
    they would add noise to a variance or take an adaptive step with a counter. So the strategy sees the parameters
    only, and buffers are averaged as FedAvg does.

    Parameters
    ----------
    strategy : Strategy
        The strategy that aggregates.
    directory : Directory
        Which node holds which partition.
    seed : Seed
        Sampling and the strategy's own noise derive from it.
    buffers : collection of str
        Names of the model's buffers.
    most_examples : int
        A reply that claims more images than this is refused.
    summed : bool
        Whether secure aggregation sends one reply for all clients of a round.
    meter : Meter, optional
        Reads what each reply costs.

    Attributes
    ----------
    asked : list of int
        Partition ids of the clients that the current round was sent to.
    failures : list of Failure
        Of the current round.
    bytes_received : int
        Size of the current round's replies, as serialised arrays.
    by_client : dict of int to dict
        What the current round's usable replies cost, by partition id.
    """

    def __init__(
        self,
        strategy: Strategy,
        directory: Directory,
        seed: Seed,
        *,
        buffers: Collection[str],
        most_examples: int,
        summed: bool = False,
        meter: Meter | None = None,
    ) -> None:
        super().__init__(strategy)
        self.asked: list[int] = []
        self.failures: list[Failure] = []
        self.bytes_received = 0
        self.by_client: dict[int, Row] = {}
        self._meter = meter
        self._directory = directory
        self._seed = seed
        self._buffers = frozenset(buffers)
        self._most_examples = most_examples
        self._summed = summed
        self._sent = ArrayRecord()

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Sample clients by the scenario's seed."""
        self._sent = arrays
        with self._seed.derive("sampling", server_round).isolated():
            parameters = ArrayRecord({name: array for name, array in arrays.items() if name not in self._buffers})
            messages = list(self.strategy.configure_train(server_round, parameters, config, grid))
        for message in messages:
            [key] = message.content.array_records
            message.content[key] = arrays
        self.asked = sorted(self._directory.partition(message.metadata.dst_node_id) for message in messages)
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Drop and count replies that the protocol does not allow, order the rest by partition, and delegate."""
        received = list(replies)
        contents = [reply.content for reply in received if not reply.has_error()]
        self.bytes_received = sum(record.count_bytes() for content in contents for record in content.array_records.values())
        good, self.failures = sift(received, self._sent, self._directory, self.asked, self._most_examples, summed=self._summed)
        metered = good if self._meter and not self._summed else {}
        self.by_client = {client: self._meter.read(reply, self._sent) for client, reply in metered.items()} if self._meter else {}
        if not good:
            return None, None
        buffers = self._averaged_buffers([reply.content for reply in good.values()])
        # Flower's privacy strategies draw noise here, from NumPy's global generator.
        with self._seed.derive("aggregation", server_round).isolated():
            try:
                arrays, metrics = self.strategy.aggregate_train(server_round, list(good.values()))
            except (AppExitException, ArithmeticError, LookupError, TypeError, ValueError) as error:
                name = type(self.strategy).__name__
                raise FedleakError(f"round {server_round}: the strategy {name} failed: {error}") from error
        return (None if arrays is None else self._as_sent(arrays, buffers)), metrics

    def _averaged_buffers(self, contents: list[RecordDict]) -> Arrays:
        """Take the buffers out of the replies, and return their mean, weighted by the number of examples."""
        weights = [cast(float, next(iter(content.metric_records.values()))["num-examples"]) for content in contents]
        means: Arrays = {}
        total = sum(weights)
        for content, weight in zip(contents, weights, strict=True):
            [(key, arrays)] = content.array_records.items()
            for name in self._buffers:
                means[name] = means.get(name, 0) + arrays[name].numpy() * (weight / total)
            content[key] = ArrayRecord({name: array for name, array in arrays.items() if name not in self._buffers})
        return means

    def _as_sent(self, arrays: ArrayRecord, buffers: Arrays) -> ArrayRecord:
        # Averaging turns integer counters into floats, and some strategies float32 into float64; the next round must
        # send what this one sent.
        restored = ArrayRecord()
        for name, sent in self._sent.items():
            values, dtype = buffers[name] if name in buffers else arrays[name].numpy(), np.dtype(sent.dtype)
            if values.dtype != dtype:
                values = np.rint(values).astype(dtype) if dtype.kind in "iu" else values.astype(dtype)
            restored[name] = Array(np.asarray(values, order="C"))
        return restored
