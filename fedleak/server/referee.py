"""What fedleak adds around any Flower strategy, curious or not: seeded sampling, ordered replies, metered costs, buffers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.app.exception import AppExitException
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedleak.arrays import record_with, records_of
from fedleak.errors import FedleakError
from fedleak.positions.door import Aggregator
from fedleak.runs.folder import Arrays, Row
from fedleak.seeding import Seed
from fedleak.server.costs import Meter
from fedleak.wire.arrays import DecodedArray
from fedleak.wire.received import Received, Reply


class Referee(Aggregator):
    """Wrap a strategy so that its sampling is seeded, its replies are good and in order, and buffers are averaged.

    Flower samples clients with the global ``random`` and hides clients that fail; both would make a run's numbers
    depend on things that nobody sees. Its strategies treat BatchNorm's statistics and integer counters as parameters:
    they would add noise to a variance or take an adaptive step with a counter. So the strategy sees the parameters
    only, of the replies that its door let pass, and buffers are averaged as FedAvg does.

    Parameters
    ----------
    strategy : Strategy
        The strategy that aggregates.
    seed : Seed
        Sampling and the strategy's own noise derive from it.
    buffers : collection of str
        Names of the model's buffers.
    meter : Meter, optional
        Reads what each reply costs; left out where secure aggregation sends one reply for all clients.

    Attributes
    ----------
    by_client : dict of int to dict
        What the current round's usable replies cost, by partition id.
    """

    def __init__(self, strategy: Strategy, seed: Seed, *, buffers: Collection[str], meter: Meter | None = None) -> None:
        super().__init__(strategy)
        self.by_client: dict[int, Row] = {}
        self._meter = meter
        self._seed = seed
        self._buffers = frozenset(buffers)
        self._sent = ArrayRecord()

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Sample clients by the scenario's seed."""
        self._sent = arrays
        with self._seed.derive("sampling", server_round).isolated():
            parameters = ArrayRecord({name: array for name, array in arrays.items() if name not in self._buffers})
            messages = list(self.strategy.configure_train(server_round, parameters, config, grid))
        for message in messages:
            [key] = records_of(message.content, ArrayRecord)
            message.content[key] = arrays
        return messages

    def aggregate(self, received: Received) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Read what the replies cost, and delegate."""
        good = received.good
        self.by_client = {}
        if self._meter is not None:
            self.by_client = {client: self._meter.read(reply, received.sent[client]) for client, reply in good.items()}
        if not good:
            return None, None
        buffers = self._averaged_buffers(good)
        for reply in good.values():
            self._hand_over(reply)
        # Flower's privacy strategies draw noise here, from NumPy's global generator.
        with self._seed.derive("aggregation", received.round).isolated():
            try:
                arrays, metrics = self.strategy.aggregate_train(received.round, [reply.message for reply in good.values()])
            except (AppExitException, ArithmeticError, LookupError, TypeError, ValueError) as error:
                name = type(self.strategy).__name__
                raise FedleakError(f"round {received.round}: the strategy {name} failed: {error}") from error
        return (None if arrays is None else self._as_sent(arrays, buffers)), metrics

    def _averaged_buffers(self, replies: Mapping[int, Reply]) -> Arrays:
        """Return the mean of the replies' buffers, weighted by the number of examples."""
        total = sum(reply.examples for reply in replies.values())
        means: Arrays = {}
        for reply in replies.values():
            for name in self._buffers:
                means[name] = means.get(name, 0) + reply.arrays[name] * (reply.examples / total)
        return means

    def _hand_over(self, reply: Reply) -> None:
        """Leave in the message what the strategy is to see: the parameters, decoded."""
        [(key, arrays)] = records_of(reply.message.content, ArrayRecord).items()
        reply.message.content[key] = record_with(
            {name: DecodedArray(array, reply.arrays[name]) for name, array in arrays.items() if name not in self._buffers}
        )

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
