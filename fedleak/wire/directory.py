"""Which node holds which partition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from flwr.app import ConfigRecord, Message, RecordDict

from fedleak.errors import FedleakError
from fedleak.printable import one_line

_QUERY_CHUNK = 50
_LONGEST_REASON = 300


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
