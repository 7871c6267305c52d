"""The server's end of secure aggregation: a grid that turns a round's train messages into one reply, the mean."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedleak.defenses.secure_aggregation import SecureAggregation
from fedleak.secagg.protocol import ProtocolError, SecAggPlusRound, global_model
from fedleak.secagg.vector import unpack
from fedleak.seeding import Seed
from fedleak.wire.cohort import COHORT, LOST
from fedleak.wire.directory import Directory
from fedleak.wire.grid import DelegatingGrid


class SecureGrid(DelegatingGrid):
    """Carry train messages by SecAgg+; other messages pass to the engine's grid.

    Parameters
    ----------
    grid : Grid
        The engine's.
    directory : Directory
        Which node holds which partition.
    secure : SecureAggregation
        The defense, with its parameters.
    seed : Seed
        Who shares keys with whom is drawn from it; keys and masks are not.
    most_examples : int
        The most images behind one update; ``max_weight`` where that is not set.
    gradients : collection of str
        Names of the arrays that travel as they are; the others travel as their change.

    Attributes
    ----------
    bytes_sent, bytes_received : int
        By the server in the latest round, over all stages.
    """

    def __init__(
        self,
        grid: Grid,
        directory: Directory,
        secure: SecureAggregation,
        seed: Seed,
        *,
        most_examples: int,
        gradients: Collection[str],
    ) -> None:
        self.bytes_sent = self.bytes_received = 0
        super().__init__(grid)
        self._directory = directory
        self._secure = secure
        self._seed = seed
        self._weight = secure.config.max_weight or float(most_examples)
        self._gradients = frozenset(gradients)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return the replies; of train messages the mean, and an error for each client that is not in it.

        Where the sum cannot be formed, one error stands for the whole round.
        """
        given = list(messages)
        if not given or given[0].metadata.message_type != "train":
            return self._grid.send_and_receive(given, timeout=timeout)
        done = SecAggPlusRound(self._grid, self._directory, self._secure, self._weight, given, self._neighbours(given), timeout)
        asked = {message.metadata.dst_node_id: message for message in given}
        try:
            vector, examples = done.run()
        except ProtocolError as error:
            first = min(done.reasons or asked, key=self._directory.partition)
            return [_error(asked[first], str(error))]
        finally:
            self.bytes_sent, self.bytes_received = done.bytes_sent, done.bytes_received
        lost = [node for node in sorted(asked, key=self._directory.partition) if node not in done.summed]
        return [self._mean(given, done, vector, examples), *(_error(asked[node], done.reasons[node]) for node in lost)]

    def _neighbours(self, messages: Sequence[Message]) -> dict[int, set[int]]:
        """Put the nodes on a ring, and let each share its keys with those next to it."""
        nodes = sorted((message.metadata.dst_node_id for message in messages), key=self._directory.partition)
        server_round = int(cast(int, messages[0].content.config_records["config"]["server-round"]))
        random.Random(self._seed.derive("ring", server_round).value).shuffle(nodes)
        half = self._secure.shares(len(nodes)) // 2
        return {node: {nodes[(at + step) % len(nodes)] for step in range(-half, half + 1)} for at, node in enumerate(nodes)}

    def _mean(self, messages: Sequence[Message], done: SecAggPlusRound, vector: np.ndarray[Any, Any], examples: int) -> Message:
        """Return the mean as a reply of the first client, which names all those that it stands for."""
        sent = {name: array.numpy() for name, array in global_model(messages).items()}
        arrays = unpack(vector, sent, self._gradients, self._secure.config.clipping_range)
        clients = sorted(self._directory.partition(node) for node in done.summed)
        reply = done.replies[self._directory.node(clients[0])]
        reply.content = RecordDict(
            {
                "arrays": ArrayRecord({name: Array(np.asarray(value, order="C")) for name, value in arrays.items()}),
                "metrics": MetricRecord({"num-examples": examples}),
                COHORT: ConfigRecord({"clients": clients}),
            }
        )
        return reply


def _error(asked: Message, reason: str) -> Message:
    return Message(Error(code=LOST, reason=reason), reply_to=asked)
