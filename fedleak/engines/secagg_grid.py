"""The server's side of SecAgg+: a grid that turns a round's train messages into one reply, the mean over the survivors."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common import bytes_to_ndarray
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.serverapp import Grid
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key
from flwr.supercore.run import Run

from fedleak.defenses.secure_aggregation import MODULUS, SecureAggregation
from fedleak.engines.secagg_vector import unpack
from fedleak.errors import FedleakError
from fedleak.seeding import Seed
from fedleak.server.cohort import COHORT, LOST
from fedleak.server.replies import Directory

Vectors = list[np.ndarray[Any, Any]]


class ProtocolError(FedleakError):
    """The round's sum cannot be formed."""


@dataclass
class Exchange:
    """Where a round of the protocol stands.

    Attributes
    ----------
    neighbours : dict of int to set of int
        With whom each sampled node shares its keys, itself included.
    active : set of int
        Nodes that answered every stage so far.
    keys : dict of int to list of bytes
        Both public keys of each node.
    reasons : dict of int to str
        Why a node is no longer active.
    bytes_sent, bytes_received : int
        By the server, in this round, over all records.
    """

    neighbours: dict[int, set[int]]
    active: set[int]
    keys: dict[int, list[bytes]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0


class SecureGrid(Grid):
    """Carry train messages by SecAgg+; other messages pass to the engine's grid.

    Stages, messages and cryptography are those of Flower's ``SecAggPlusWorkflow``. Unlike it, a client that is lost
    before all keys were shared is left out of the round, instead of ending it.

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
    weight : int
        The most images behind one update.
    gradients : collection of str
        Names of the arrays that travel as they are; the others travel as their change.
    announce : callable
        Told the result of each exchange, for the account of the round.
    """

    def __init__(
        self,
        grid: Grid,
        directory: Directory,
        secure: SecureAggregation,
        seed: Seed,
        *,
        weight: int,
        gradients: Collection[str],
        announce: Callable[[Exchange], None] = lambda exchange: None,
    ) -> None:
        self._grid = grid
        self._directory = directory
        self._secure = secure
        self._seed = seed
        self._weight = secure.config.max_weight or float(weight)
        self._gradients = frozenset(gradients)
        self._announce = announce

    def set_run(self, run: Run) -> None:
        """Delegate."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Delegate."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Delegate."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Delegate."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Delegate."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Delegate."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return the replies; of train messages the mean, and an error for each client that is not in it.

        If there are too few clients left, one error stands for the whole round.
        """
        given = list(messages)
        if not given or given[0].metadata.message_type != "train":
            return self._grid.send_and_receive(given, timeout=timeout)
        exchange = Exchange(self._neighbours(given), {message.metadata.dst_node_id for message in given})
        protocol = _Protocol(self._grid, self._directory, self._secure, self._weight, exchange, given, timeout)
        lost: list[int] = []
        try:
            vector, examples = protocol.run()
        except ProtocolError as error:
            first = min(exchange.reasons, key=self._directory.partition, default=given[0].metadata.dst_node_id)
            return [_error(given, first, str(error))]
        finally:
            lost = sorted(exchange.reasons, key=self._directory.partition)
            self._announce(exchange)
        return [self._mean(protocol, vector, examples), *(_error(given, node, exchange.reasons[node]) for node in lost)]

    def _neighbours(self, messages: Sequence[Message]) -> dict[int, set[int]]:
        """Put the nodes on a ring, and let each share its keys with those next to it."""
        nodes = sorted((message.metadata.dst_node_id for message in messages), key=self._directory.partition)
        random.Random(self._seed.derive("ring", messages[0].metadata.group_id).value).shuffle(nodes)
        half = self._secure.shares(len(nodes)) // 2
        return {node: {nodes[(at + step) % len(nodes)] for step in range(-half, half + 1)} for at, node in enumerate(nodes)}

    def _mean(self, protocol: _Protocol, vector: np.ndarray[Any, Any], examples: int) -> Message:
        """Return the mean as a reply of the first client, which names all those that it stands for."""
        sent = {name: array.numpy() for name, array in protocol.arrays.items()}
        arrays = unpack(vector, sent, self._gradients, self._secure.config.clipping_range)
        clients = sorted(self._directory.partition(node) for node in protocol.summed)
        content = RecordDict(
            {
                "arrays": ArrayRecord({name: Array(np.asarray(value, order="C")) for name, value in arrays.items()}),
                "metrics": MetricRecord({"num-examples": examples}),
                COHORT: ConfigRecord({"clients": clients}),
            }
        )
        reply = protocol.replies[self._directory.node(clients[0])]
        reply.content = content
        return reply


class _Protocol:
    """One round of SecAgg+, stage by stage."""

    def __init__(
        self,
        grid: Grid,
        directory: Directory,
        secure: SecureAggregation,
        weight: float,
        exchange: Exchange,
        messages: Sequence[Message],
        timeout: float | None,
    ) -> None:
        self._grid, self._directory, self._timeout = grid, directory, timeout
        self._config, self._weight = secure.config, weight
        self._sampled = len(messages)
        self._shares, self._threshold = secure.shares(self._sampled), secure.threshold(self._sampled)
        self._messages = {message.metadata.dst_node_id: message for message in messages}
        self._group = messages[0].metadata.group_id
        self._exchange = exchange
        self.replies: dict[int, Message] = {}
        self.summed: set[int] = set()

    @property
    def arrays(self) -> ArrayRecord:
        """The global model that the clients were sent."""
        [arrays] = next(iter(self._messages.values())).content.array_records.values()
        return arrays

    def run(self) -> tuple[np.ndarray[Any, Any], int]:
        """Return the mean vector, and how many examples are behind it."""
        self._setup()
        forwarded = self._share_keys()
        members = set(self._exchange.active)  # their masks are in each other's vectors, whoever drops out now
        total = self._collect(forwarded)
        self.summed = set(self._exchange.active)
        return self._decode(self._unmask(total, members))

    def _stage(self, stage: str, configs: dict[int, dict[str, Any]]) -> dict[int, ConfigRecord]:
        """Send each node its configuration, and return what those that answered sent back."""
        messages = []
        for node, values in configs.items():
            content = RecordDict({RECORD_KEY_CONFIGS: ConfigRecord({**values, Key.STAGE: stage})})
            if stage == Stage.COLLECT_MASKED_VECTORS:
                for key, record in self._messages[node].content.items():
                    content[key] = record
            messages.append(Message(content, dst_node_id=node, message_type="train", group_id=self._group))
            self._exchange.bytes_sent += _size(content)
        answers: dict[int, ConfigRecord] = {}
        for reply in self._grid.send_and_receive(messages, timeout=self._timeout):
            node = reply.metadata.src_node_id
            if reply.has_error():
                self._exchange.reasons[node] = f"in stage '{stage}': {' '.join(str(reply.error.reason).split())}"
                continue
            self._exchange.bytes_received += _size(reply.content)
            record = reply.content.config_records.get(RECORD_KEY_CONFIGS)
            if record is None or not _FORMS[stage](record):
                self._exchange.reasons[node] = f"in stage '{stage}': the answer is not of the protocol's form"
                continue
            answers[node], self.replies[node] = record, reply
        for node in set(configs) - set(answers):
            self._exchange.reasons.setdefault(node, f"in stage '{stage}': no reply")
        self._exchange.active = set(answers)
        return answers

    def _require(self, stage: str, nodes: Iterable[int]) -> None:
        """Refuse to go on where the keys of one of ``nodes`` have too few holders left."""
        left = min((len(self._exchange.neighbours[node] & self._exchange.active) for node in nodes), default=0)
        if left < self._threshold:
            raise self._failure(stage, f"{left} holders of a client's key shares are left")

    def _failure(self, stage: str, what: str) -> ProtocolError:
        partition = self._directory.partition
        reasons = [f"client {partition(node)} {self._exchange.reasons[node]}" for node in sorted(self._exchange.reasons, key=partition)]
        return ProtocolError(
            f"secure aggregation failed after stage '{stage}': {len(self._exchange.active)} of {self._sampled} clients go on, {what}, "
            f"and the reconstruction threshold is {self._threshold}; {'; '.join(reasons) or 'no client raised an error'}"
        )

    def _setup(self) -> None:
        config = {
            Key.SAMPLE_NUMBER: self._sampled,
            Key.SHARE_NUMBER: self._shares,
            Key.THRESHOLD: self._threshold,
            Key.CLIPPING_RANGE: float(self._config.clipping_range),
            Key.TARGET_RANGE: self._config.quantization_range,
            Key.MOD_RANGE: MODULUS,
            Key.MAX_WEIGHT: float(self._weight),
        }
        for node, record in self._stage(Stage.SETUP, dict.fromkeys(self._messages, config)).items():
            self._exchange.keys[node] = [cast(bytes, record[Key.PUBLIC_KEY_1]), cast(bytes, record[Key.PUBLIC_KEY_2])]
        self._require(Stage.SETUP, self._exchange.active)

    def _share_keys(self) -> dict[int, dict[str, Any]]:
        """Return, for each node, the encrypted shares that the others made for it."""
        around = {node: self._exchange.neighbours[node] & self._exchange.active for node in self._exchange.active}
        configs = {node: {str(other): self._exchange.keys[other] for other in around[node]} for node in self._ordered(around)}
        answers = self._stage(Stage.SHARE_KEYS, configs)
        self._require(Stage.SHARE_KEYS, self._exchange.active)
        forwarded: dict[int, dict[str, Any]] = {
            node: {Key.CIPHERTEXT_LIST: [], Key.SOURCE_LIST: []} for node in self._ordered(answers)
        }
        for source, record in answers.items():
            pairs = zip(cast(list[int], record[Key.DESTINATION_LIST]), cast(list[bytes], record[Key.CIPHERTEXT_LIST]), strict=True)
            for destination, ciphertext in pairs:
                if destination in forwarded:
                    forwarded[destination][Key.SOURCE_LIST].append(source)
                    forwarded[destination][Key.CIPHERTEXT_LIST].append(ciphertext)
        return forwarded

    def _collect(self, forwarded: dict[int, dict[str, Any]]) -> Vectors:
        """Return the sum of the masked vectors."""
        members = set(forwarded)
        answers = self._stage(Stage.COLLECT_MASKED_VECTORS, forwarded)
        self._require(Stage.COLLECT_MASKED_VECTORS, members)
        total: Vectors | None = None
        for record in answers.values():
            vector = [bytes_to_ndarray(part) for part in cast(list[bytes], record[Key.MASKED_PARAMETERS])]
            total = vector if total is None else parameters_addition(total, vector)
        assert total is not None
        return parameters_mod(total, MODULUS)

    def _unmask(self, total: Vectors, members: set[int]) -> Vectors:
        """Return the sum without its masks, which the shares of the survivors give away."""
        neighbours, dropped = self._exchange.neighbours, members - self.summed
        configs = {
            node: {
                Key.ACTIVE_NODE_ID_LIST: self._ordered(neighbours[node] & self.summed),
                Key.DEAD_NODE_ID_LIST: self._ordered(neighbours[node] & dropped),
            }
            for node in self._ordered(self.summed)
        }
        shares: dict[int, list[bytes]] = {node: [] for node in members}
        for record in self._stage(Stage.UNMASK, configs).values():
            for owner, share in zip(cast(list[int], record[Key.NODE_ID_LIST]), cast(list[bytes], record[Key.SHARE_LIST]), strict=True):
                shares[owner].append(share)
        self._require(Stage.UNMASK, members)
        shape = get_parameters_shape(total)
        for node in self._ordered(members):
            secret = combine_shares(shares[node])
            if node in self.summed:
                total = parameters_subtraction(total, pseudo_rand_gen(secret, MODULUS, shape))
                continue
            for other in neighbours[node] & self.summed:
                key = generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(self._exchange.keys[other][0]))
                mask = pseudo_rand_gen(key, MODULUS, shape)
                # The survivor added the mask if its number is the larger, and took it away otherwise.
                total = parameters_subtraction(total, mask) if other > node else parameters_addition(total, mask)
        return parameters_mod(total, MODULUS)

    def _decode(self, total: Vectors) -> tuple[np.ndarray[Any, Any], int]:
        ratio, parts = factor_extract(total)
        levels, reach = self._config.quantization_range, self._config.clipping_range
        [vector] = dequantize(parts, reach, levels)
        # Each client's vector was shifted by the range, which dequantize takes off once.
        vector = (vector - (len(self.summed) - 1) * reach) * (levels / float(ratio))
        return vector, round(float(ratio) / levels * self._weight)

    def _ordered(self, nodes: Iterable[int]) -> list[int]:
        return sorted(nodes, key=self._directory.partition)


def _size(content: RecordDict) -> int:
    # Flower's count raises on an empty list, such as that of the dropped clients.
    configs = [{key: value for key, value in record.items() if value != []} for record in content.config_records.values()]
    others = [*content.array_records.values(), *content.metric_records.values()]
    return sum(record.count_bytes() for record in [*others, *map(ConfigRecord, configs)])


def _error(messages: Sequence[Message], node: int, reason: str) -> Message:
    [asked] = [message for message in messages if message.metadata.dst_node_id == node]
    return Message(Error(code=LOST, reason=reason), reply_to=asked)


def _lists(record: ConfigRecord, numbers: str, values: str) -> bool:
    found = record.get(numbers), record.get(values)
    return all(isinstance(one, list) for one in found) and len(found[0]) == len(found[1])  # type: ignore[arg-type]


_FORMS: dict[str, Callable[[ConfigRecord], bool]] = {
    Stage.SETUP: lambda record: all(isinstance(record.get(key), bytes) for key in (Key.PUBLIC_KEY_1, Key.PUBLIC_KEY_2)),
    Stage.SHARE_KEYS: lambda record: _lists(record, Key.DESTINATION_LIST, Key.CIPHERTEXT_LIST),
    Stage.COLLECT_MASKED_VECTORS: lambda record: isinstance(record.get(Key.MASKED_PARAMETERS), list),
    Stage.UNMASK: lambda record: _lists(record, Key.NODE_ID_LIST, Key.SHARE_LIST),
}
