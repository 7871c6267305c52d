"""One round of SecAgg+ from the server's side, stage by stage, with Flower's own messages and primitives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
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

from fedleak.defenses.secure_aggregation import MODULUS, SecureAggregation
from fedleak.errors import FedleakError
from fedleak.wire.directory import Directory

Vectors = list[np.ndarray[Any, Any]]


class ProtocolError(FedleakError):
    """The round's sum cannot be formed."""


class SecAggPlusRound:
    """A round of the protocol.

    Parameters
    ----------
    grid : Grid
        Reaches the clients.
    directory : Directory
        Which node holds which partition.
    secure : SecureAggregation
        The defense, with its parameters.
    weight : float
        The most images behind one update.
    messages : sequence of Message
        The strategy's train messages, one for each sampled node.
    neighbours : mapping of int to set of int
        With whom each sampled node shares its keys, itself included.
    timeout : float or None
        Seconds for each stage.

    Attributes
    ----------
    active : set of int
        Nodes that answered every stage so far.
    summed : set of int
        Nodes whose update is in the sum.
    reasons : dict of int to str
        Why a node is no longer active.
    replies : dict of int to Message
        Each node's latest.
    bytes_sent, bytes_received : int
        By the server, over all records.
    """

    def __init__(
        self,
        grid: Grid,
        directory: Directory,
        secure: SecureAggregation,
        weight: float,
        messages: Sequence[Message],
        neighbours: Mapping[int, set[int]],
        timeout: float | None,
    ) -> None:
        self._grid, self._directory, self._timeout = grid, directory, timeout
        self._config, self._weight = secure.config, weight
        self._shares, self._threshold = secure.shares(len(messages)), secure.threshold(len(messages))
        self._messages = {message.metadata.dst_node_id: message for message in messages}
        self._neighbours = neighbours
        self._keys: dict[int, list[bytes]] = {}
        self.active = set(self._messages)
        self.summed: set[int] = set()
        self.reasons: dict[int, str] = {}
        self.replies: dict[int, Message] = {}
        self.bytes_sent = self.bytes_received = 0

    def run(self) -> tuple[np.ndarray[Any, Any], int]:
        """Return the mean vector over the survivors, and how many examples are behind it.

        Raises
        ------
        ProtocolError
            If too few clients are left; the message says after which stage, and why the others went.
        """
        self._setup()
        forwarded = self._share_keys()
        members = set(self.active)  # their masks are in each other's vectors, whoever drops out from here on
        total = self._collect(forwarded)
        try:
            return self._decode(self._unmask(total, members))
        except ValueError as error:  # what the primitives make of keys and shares that fit no secret
            raise self._failure(Stage.UNMASK, f"the clients' shares open no key ({error})") from error

    def _setup(self) -> None:
        config = {
            Key.SAMPLE_NUMBER: len(self._messages),
            Key.SHARE_NUMBER: self._shares,
            Key.THRESHOLD: self._threshold,
            Key.CLIPPING_RANGE: float(self._config.clipping_range),
            Key.TARGET_RANGE: self._config.quantization_range,
            Key.MOD_RANGE: MODULUS,
            Key.MAX_WEIGHT: float(self._weight),
        }
        for node, record in self._stage(Stage.SETUP, dict.fromkeys(self._messages, config)).items():
            self._keys[node] = [cast(bytes, record[Key.PUBLIC_KEY_1]), cast(bytes, record[Key.PUBLIC_KEY_2])]
        self._require(Stage.SETUP, self.active)

    def _share_keys(self) -> dict[int, dict[str, Any]]:
        """Return, for each node, the encrypted shares that the others made for it."""
        configs = {
            node: {str(other): self._keys[other] for other in self._ordered(self._neighbours[node] & self.active)}
            for node in self._ordered(self.active)
        }
        answers = self._stage(Stage.SHARE_KEYS, configs)
        self._require(Stage.SHARE_KEYS, self.active)
        forwarded: dict[int, dict[str, Any]] = {
            node: {Key.CIPHERTEXT_LIST: [], Key.SOURCE_LIST: []} for node in self._ordered(answers)
        }
        for source, record in answers.items():
            for destination, ciphertext in _pairs(record, Key.DESTINATION_LIST, Key.CIPHERTEXT_LIST):
                if destination in forwarded:
                    forwarded[destination][Key.SOURCE_LIST].append(source)
                    forwarded[destination][Key.CIPHERTEXT_LIST].append(ciphertext)
        return forwarded

    def _collect(self, forwarded: dict[int, dict[str, Any]]) -> Vectors:
        """Return the sum of the masked vectors."""
        answers = self._stage(Stage.COLLECT_MASKED_VECTORS, forwarded)
        model = global_model(list(self._messages.values()))
        size = sum(int(np.prod(array.shape)) for array in model.values())
        total: Vectors = [np.zeros(1, np.int64), np.zeros(size, np.int64)]
        for node, record in answers.items():
            vector = _masked(record, size)
            if vector is None:
                self._lose(node, Stage.COLLECT_MASKED_VECTORS, f"the masked vector has not the form of {size} numbers")
            else:
                total = parameters_addition(total, vector)
        self.summed = set(self.active)
        self._require(Stage.COLLECT_MASKED_VECTORS, forwarded)
        return parameters_mod(total, MODULUS)

    def _unmask(self, total: Vectors, members: set[int]) -> Vectors:
        """Return the sum without its masks, which the survivors' shares give away."""
        dropped = members - self.summed
        configs = {
            node: {
                Key.ACTIVE_NODE_ID_LIST: self._ordered(self._neighbours[node] & self.summed),
                Key.DEAD_NODE_ID_LIST: self._ordered(self._neighbours[node] & dropped),
            }
            for node in self._ordered(self.summed)
        }
        shares: dict[int, list[bytes]] = {node: [] for node in members}
        for record in self._stage(Stage.UNMASK, configs).values():
            for owner, share in _pairs(record, Key.NODE_ID_LIST, Key.SHARE_LIST):
                shares.get(owner, []).append(share)
        self._require(Stage.UNMASK, members)
        shape = get_parameters_shape(total)
        for node in self._ordered(members):
            secret = combine_shares(shares[node])
            if node in self.summed:
                total = parameters_subtraction(total, pseudo_rand_gen(secret, MODULUS, shape))
                continue
            for other in self._neighbours[node] & self.summed:
                key = generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(self._keys[other][0]))
                mask = pseudo_rand_gen(key, MODULUS, shape)
                # The survivor added the mask if its number is the larger, and took it away otherwise.
                total = parameters_subtraction(total, mask) if other > node else parameters_addition(total, mask)
        return parameters_mod(total, MODULUS)

    def _decode(self, total: Vectors) -> tuple[np.ndarray[Any, Any], int]:
        ratio, parts = factor_extract(total)
        levels, reach = self._config.quantization_range, self._config.clipping_range
        if ratio <= 0:
            raise ValueError("the weights sum to nothing")
        [vector] = dequantize(parts, reach, levels)
        # Each client's vector was shifted by the range, which dequantize takes off once.
        vector = (vector - (len(self.summed) - 1) * reach) * (levels / float(ratio))
        return vector, round(float(ratio) / levels * self._weight)

    def _stage(self, stage: str, configs: dict[int, dict[str, Any]]) -> dict[int, ConfigRecord]:
        """Send each node its configuration, and return what those that answered sent back."""
        messages = []
        for node, values in configs.items():
            content = RecordDict({RECORD_KEY_CONFIGS: ConfigRecord({**values, Key.STAGE: stage})})
            asked = self._messages[node]
            if stage == Stage.COLLECT_MASKED_VECTORS:
                for key, record in asked.content.items():
                    content[key] = record
            messages.append(Message(content, dst_node_id=node, message_type="train", group_id=asked.metadata.group_id))
            self.bytes_sent += _size(content)
        answers: dict[int, ConfigRecord] = {}
        for reply in self._grid.send_and_receive(messages, timeout=self._timeout):
            node = reply.metadata.src_node_id
            if reply.has_error():
                self._lose(node, stage, " ".join(str(reply.error.reason).split()))
                continue
            self.bytes_received += _size(reply.content)
            answer = reply.content.config_records.get(RECORD_KEY_CONFIGS, ConfigRecord())
            if _well_formed(stage, answer):
                answers[node], self.replies[node] = answer, reply
            else:
                self._lose(node, stage, "the answer is not of the protocol's form")
        for node in configs.keys() - answers.keys() - self.reasons.keys():
            self._lose(node, stage, "no reply")
        self.active = set(answers)
        return answers

    def _lose(self, node: int, stage: str, reason: str) -> None:
        self.reasons[node] = f"in stage '{stage}': {reason}"
        self.active.discard(node)

    def _require(self, stage: str, nodes: Iterable[int]) -> None:
        """Refuse to go on where the keys of one of ``nodes`` have too few holders left."""
        left = min((len(self._neighbours[node] & self.active) for node in nodes), default=0)
        if left < self._threshold:
            raise self._failure(stage, f"{left} shares of a key where {self._threshold} are needed")

    def _failure(self, stage: str, what: str) -> ProtocolError:
        said: dict[str, list[str]] = {}
        for node in self._ordered(self.reasons):
            said.setdefault(self.reasons[node], []).append(str(self._directory.partition(node)))
        lost = "; ".join(f"client{'s' if clients[1:] else ''} {', '.join(clients)} {reason}" for reason, clients in said.items())
        left = f"{len(self.active)} of {len(self._messages)} clients left"
        return ProtocolError(f"secure aggregation failed, {left} after stage '{stage}': {what}; {lost or 'none raised an error'}")

    def _ordered(self, nodes: Iterable[int]) -> list[int]:
        return sorted(nodes, key=self._directory.partition)


def _size(content: RecordDict) -> int:
    # Flower's count raises on an empty list, such as that of the dropped clients.
    configs = [{key: value for key, value in record.items() if value != []} for record in content.config_records.values()]
    size = sum(record.count_bytes() for record in content.array_records.values())
    size += sum(record.count_bytes() for record in content.metric_records.values())
    return size + sum(ConfigRecord(config).count_bytes() for config in configs)


def _pairs(record: ConfigRecord, numbers: str, values: str) -> list[tuple[int, bytes]]:
    return list(zip(cast(list[int], record[numbers]), cast(list[bytes], record[values]), strict=True))


def _well_formed(stage: str, record: ConfigRecord) -> bool:
    if stage == Stage.SETUP:
        return all(isinstance(record.get(key), bytes) for key in (Key.PUBLIC_KEY_1, Key.PUBLIC_KEY_2))
    if stage == Stage.COLLECT_MASKED_VECTORS:
        return isinstance(record.get(Key.MASKED_PARAMETERS), list)
    names = (Key.DESTINATION_LIST, Key.CIPHERTEXT_LIST) if stage == Stage.SHARE_KEYS else (Key.NODE_ID_LIST, Key.SHARE_LIST)
    numbers, values = (record.get(name) for name in names)
    return isinstance(numbers, list) and isinstance(values, list) and len(numbers) == len(values)


def _masked(record: ConfigRecord, size: int) -> Vectors | None:
    """Return the weight and the vector of a client, both masked; ``None`` if they are not of that form."""
    try:
        parts = [bytes_to_ndarray(part) for part in cast(list[bytes], record[Key.MASKED_PARAMETERS])]
    except (ValueError, TypeError, OSError, EOFError):
        return None
    fits = [part.shape for part in parts] == [(1,), (size,)] and all(part.dtype == np.int64 for part in parts)
    return parts if fits else None


def global_model(messages: Sequence[Message]) -> ArrayRecord:
    """Return the arrays that all of a round's train messages hold."""
    [arrays] = messages[0].content.array_records.values()
    return arrays
