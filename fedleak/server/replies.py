"""What a train reply must look like, and where it came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from tokenize import TokenError
from types import MappingProxyType
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedleak.errors import FedleakError, ReplyError
from fedleak.printable import one_line
from fedleak.server.cohort import LOST, cohort_of

_QUERY_CHUNK = 50
_LONGEST_REASON = 300
_UNREACHABLE = (3, 4, 5)  # Flower's codes for a message, a reply or a node that is not there
_NPY = b"\x93NUMPY"


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


def sift(
    replies: Iterable[Message],
    sent: ArrayRecord,
    directory: Directory,
    asked: Collection[int],
    most_examples: int,
    *,
    summed: bool = False,
) -> tuple[dict[int, Message], list[Failure]]:
    """Part the replies that the protocol allows from the clients that failed.

    Parameters
    ----------
    replies : iterable of Message
        As received.
    sent : ArrayRecord
        The global model that the clients were sent.
    directory : Directory
        Which node holds which partition.
    asked : collection of int
        Partition ids of the clients that were sent the model.
    most_examples : int
        No client can have trained on more images.
    summed : bool
        Whether the replies come from secure aggregation: one for all clients of the sum, or one error for the round.

    Returns
    -------
    good : dict of int to Message
        The usable replies by partition id, ascending.
    failures : list of Failure
        Every other client that was asked, ascending.
    """
    found: dict[int, Message] = {}
    reasons: dict[int, str] = dict.fromkeys(asked, "no reply")
    replies = list(replies)
    for reply in replies:
        client = directory.partition(reply.metadata.src_node_id)
        try:
            check_reply(reply, sent, most_examples * len(asked) if summed else most_examples)
            found[client] = reply
            # Only the server's own end of secure aggregation may speak for several clients.
            for member in (cohort_of(reply) if summed else ()) or (client,):
                reasons.pop(member, None)
        except ReplyError as error:
            reasons[client] = str(error)
            if summed and not found and len(replies) == 1:  # the round's failure
                reasons = {client: str(error)}
    # Flower refuses a whole round if the records or the metrics differ between replies.
    forms = {client: _form(found[client]) for client in sorted(found)}
    usual = Counter(forms.values()).most_common(1)[0][0] if forms else frozenset[str]()
    for client, form in forms.items():
        if form != usual:
            reasons[client] = f"sent {_some(form - usual)}, while the other clients sent {_some(usual - form)}"
            del found[client]
    failures = [Failure(client, one_line(reasons[client], _LONGEST_REASON)) for client in sorted(reasons)]
    return {client: found[client] for client in sorted(found)}, failures


def check_reply(reply: Message, sent: ArrayRecord, most_examples: int) -> ArrayRecord:
    """Return the reply's arrays if they have the names, shapes and types of ``sent`` and are finite.

    Raises
    ------
    ReplyError
        If the reply is an error, holds nothing, or holds anything but the expected numbers; the message says which.
    """
    if reply.has_error():
        reason = one_line(reply.error.reason)
        if reply.error.code == LOST:
            raise ReplyError(reason)
        if reply.error.code in _UNREACHABLE:
            raise ReplyError(f"no reply: {reason.removeprefix('Error: ')[:_LONGEST_REASON]}")
        raise ReplyError(f"the client raised: {reason[-_LONGEST_REASON:]}")
    records, metrics = reply.content.array_records, reply.content.metric_records
    if len(records) != 1 or len(metrics) != 1:
        raise ReplyError(f"expected one ArrayRecord and one MetricRecord, got {len(records)} and {len(metrics)}")
    _check_metrics(next(iter(metrics.values())), most_examples)
    arrays = next(iter(records.values()))
    if set(arrays) != set(sent):
        raise ReplyError(f"other names than the model's: {_some(set(arrays) ^ set(sent))}")
    for name, array in arrays.items():
        shape, dtype = tuple(sent[name].shape), np.dtype(sent[name].dtype)
        if tuple(array.shape) != shape:
            raise ReplyError(f"'{name}' has shape {tuple(array.shape)}, expected {shape}")
        values = decoded(name, array)
        if values.shape != shape or values.dtype != dtype:
            raise ReplyError(f"'{name}' holds {values.dtype} {values.shape}, expected {dtype} {shape}")
        if not np.isfinite(values).all():
            raise ReplyError(f"'{name}' holds NaN or infinity")
    return arrays


def _check_metrics(metrics: MetricRecord, most_examples: int) -> None:
    examples = metrics.get("num-examples")
    if not isinstance(examples, int | float) or not 1 <= examples <= most_examples or examples != int(examples):
        raise ReplyError(f"expected 'num-examples' from 1 to {most_examples}, got {examples!r:.60}")
    for name, value in metrics.items():
        if not np.isfinite(value).all():
            raise ReplyError(f"the metric '{name:.60}' is NaN or infinite")


def decoded(name: str, array: Array | None) -> np.ndarray[Any, Any]:
    """Return the values of an array that a client sent.

    Raises
    ------
    ReplyError
        If there is none, or its bytes are not NumPy's format.
    """
    if array is None or not array.data.startswith(_NPY):
        raise ReplyError(f"'{name}' is missing, or no NumPy array")
    try:
        values = array.numpy()
    # What NumPy's reader makes of bytes that only look like an array.
    except (ValueError, TypeError, OSError, EOFError, MemoryError, SyntaxError, TokenError) as error:
        raise ReplyError(f"'{name}' cannot be decoded: {error}") from error
    return values


def _form(reply: Message) -> frozenset[str]:
    """Return what must be the same in all replies of a round: how records and metrics are called, and of what kind they are."""
    [(key, metrics)] = reply.content.metric_records.items()
    kinds = {name: f"a list of {len(value)}" if isinstance(value, list) else "a number" for name, value in metrics.items()}
    return frozenset(
        {f"arrays as {name}" for name in reply.content.array_records}
        | {f"metrics as {key}"}
        | {f"{name} as {kind}" for name, kind in kinds.items()}
    )


class Directory:
    """Which node holds which partition, asked of each node once.

    Node ids are random; partition ids are what a scenario, a report and a seed can name. Nodes with other partitions
    than the scenario's take no part.

    Parameters
    ----------
    nodes : sequence of int
        All node ids that are known at the start.
    clients : int
        The partitions are 0 to ``clients - 1``.
    ask : callable
        Sends messages and returns the replies.
    known : mapping of int to int, optional
        The partitions of nodes that need not be asked.

    Raises
    ------
    FedleakError
        If two nodes hold the same partition.
    """

    def __init__(
        self,
        nodes: Sequence[int],
        clients: int,
        ask: Callable[[list[Message]], Iterable[Message]],
        known: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        self._clients, self._ask = clients, ask
        self._partition: dict[int, int] = dict(known)
        self._node: dict[int, int] = {partition: node for node, partition in known.items()}
        self._silent: dict[int, str] = {}
        self.learn(nodes)
        found = sorted(partition for partition in self._partition.values() if partition < clients)
        if len(set(found)) < len(found):
            raise FedleakError(f"expected nodes with partitions 0 to {clients - 1}, one each; found {found[:20]}")

    def learn(self, nodes: Iterable[int], *, again: bool = False) -> None:
        """Ask those nodes that are new; one that was started again with another id takes its earlier self's place.

        Parameters
        ----------
        nodes : iterable of int
            Node ids.
        again : bool
            Whether to ask those again that could not say.
        """
        if again:
            self._silent.clear()
        new = [node for node in nodes if node not in self._partition and node not in self._silent]
        for start in range(0, len(new), _QUERY_CHUNK):
            for reply in self._ask([self._whoami(node) for node in new[start : start + _QUERY_CHUNK]]):
                node = reply.metadata.src_node_id
                if reply.has_error():
                    self._silent[node] = one_line(reply.error.reason, _LONGEST_REASON)
                    continue
                self._partition[node] = int(reply.content.metric_records["who"]["partition-id"])  # type: ignore[arg-type]
                self._node[self._partition[node]] = node

    def check(self) -> None:
        """Refuse to start without all partitions.

        Raises
        ------
        FedleakError
            If one is missing; the message says what the nodes answered that could not say theirs.
        """
        if self.missing:
            why = "".join(f"; a node did not say which partition it holds: {reason}" for reason in self._silent.values())
            raise FedleakError(
                f"expected nodes with partitions 0 to {self._clients - 1}, found {sorted(self._partition.values())[:20]}{why}"
            )

    @property
    def missing(self) -> list[int]:
        """Partitions that no node holds."""
        return [partition for partition in range(self._clients) if partition not in self._node]

    @property
    def nodes(self) -> list[int]:
        """The node of each partition, in their order, whether or not it is connected just now."""
        return [self._node[partition] for partition in range(self._clients)]

    @property
    def silent(self) -> list[str]:
        """What those nodes answered that could not say which partition they hold."""
        return list(self._silent.values())

    def knows(self, node_id: int) -> bool:
        """Say whether a node has told its partition."""
        return node_id in self._partition

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
    ordered = [repr(name[:60]) for name in sorted(names)]
    return (", ".join(ordered[:3]) or "nothing") + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")
