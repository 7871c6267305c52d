"""What a train reply must look like, and where it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedleak.errors import FedleakError, ReplyError

_QUERY_CHUNK = 50


@dataclass(frozen=True)
class Failure:
    """A client whose reply could not be used in a round.

    Attributes
    ----------
    client : int
        Partition id.
    reason : str
        One line.
    """

    client: int
    reason: str


def check_reply(reply: Message, sent: ArrayRecord) -> ArrayRecord:
    """Return the reply's arrays if they have the names and shapes of ``sent`` and are finite.

    Raises
    ------
    ReplyError
        If the reply is an error, holds nothing, or holds other names, other shapes, or NaN; the message says which.
    """
    if reply.has_error():
        reason = " ".join(str(reply.error.reason).split())
        raise ReplyError(f"the client raised: {reason[-300:]}")
    records = reply.content.array_records
    if len(records) != 1 or len(reply.content.metric_records) != 1:
        raise ReplyError(
            f"expected one ArrayRecord and one MetricRecord, got {len(records)} and {len(reply.content.metric_records)}"
        )
    examples = next(iter(reply.content.metric_records.values())).get("num-examples")
    if not isinstance(examples, int | float) or not examples > 0:
        raise ReplyError(f"expected 'num-examples' above 0, got {examples!r}")
    arrays = next(iter(records.values()))
    if set(arrays) != set(sent):
        raise ReplyError(f"other names than the model's: {_some(set(arrays) ^ set(sent))}")
    for name, array in arrays.items():
        shape = tuple(sent[name].shape)
        if tuple(array.shape) != shape:
            raise ReplyError(f"'{name}' has shape {tuple(array.shape)}, expected {shape}")
        try:
            values = array.numpy()
        except (ValueError, TypeError, EOFError) as error:
            raise ReplyError(f"'{name}' cannot be decoded: {error}") from error
        if values.shape != shape or values.dtype.kind not in "fiub":
            raise ReplyError(f"'{name}' holds {values.dtype} {values.shape}, expected numbers of shape {shape}")
        if not np.isfinite(values).all():
            raise ReplyError(f"'{name}' holds NaN or infinity")
    return arrays


class Directory:
    """Which node holds which partition, asked of the nodes once at the start.

    Node ids are random; partition ids are what a scenario, a report and a seed can name.

    Parameters
    ----------
    nodes : sequence of int
        All node ids.
    clients : int
        Partitions that they must hold, one each.
    ask : callable
        Sends messages and returns the replies.

    Raises
    ------
    FedleakError
        If a node does not answer, or the partitions are not 0 to ``clients - 1``.
    """

    def __init__(self, nodes: Sequence[int], clients: int, ask: Callable[[list[Message]], Iterable[Message]]) -> None:
        self._partition: dict[int, int] = {}
        for start in range(0, len(nodes), _QUERY_CHUNK):
            for reply in ask([self._whoami(node) for node in nodes[start : start + _QUERY_CHUNK]]):
                if reply.has_error():
                    raise FedleakError(f"a node did not say which partition it holds: {reply.error.reason}")
                partition = reply.content.metric_records["who"]["partition-id"]
                self._partition[reply.metadata.src_node_id] = int(partition)  # type: ignore[arg-type]
        found = sorted(self._partition.values())
        if found != list(range(clients)):
            raise FedleakError(f"expected nodes with partitions 0 to {clients - 1}, found {found[:20]}")
        self._node = {partition: node for node, partition in self._partition.items()}

    def partition(self, node_id: int) -> int:
        """Return the partition id of a node."""
        return self._partition[node_id]

    def node(self, partition: int) -> int:
        """Return the node id of a partition."""
        return self._node[partition]

    @staticmethod
    def _whoami(node_id: int) -> Message:
        return Message(RecordDict({"config": ConfigRecord()}), dst_node_id=node_id, message_type="query.whoami")


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")
