"""A Flower grid whose nodes and replies come in the order of their partitions."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedleak.errors import FedleakError
from fedleak.wire.directory import Directory

_POLL = 0.02  # seconds between two looks for replies
_CONNECTION = 60.0  # seconds that the nodes are given to connect
_SKEW = 600.0  # seconds by which the clocks of server, SuperLink and clients may differ
_LONG = 3600.0  # seconds; a round of that length leaves no queue that is worth cutting off


def is_simulated(grid: Grid) -> bool:
    """Whether the grid is that of Flower's simulation engine, and reaches no other machine."""
    # Importing it imports a web server and a database, which only that engine needs and has then imported.
    module = sys.modules.get("flwr.superlink.grid.inmemory_grid")
    return module is not None and isinstance(grid, module.InMemoryGrid)


class DelegatingGrid(Grid):
    """Another grid with its own way of sending and receiving; all else is left to the one inside.

    Parameters
    ----------
    grid : Grid
        The one inside.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

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


class OrderedGrid(DelegatingGrid):
    """A grid whose nodes and replies come in the order of their partitions.

    Flower's node ids are random and replies arrive in any order; strategies sample and sum in that order, so that
    without this two runs differ in their clients and in the last bits of their models.

    Parameters
    ----------
    grid : Grid
        The engine's own.
    clients : int
        Nodes to wait for.
    timeout : float
        Seconds that a node may take to say which partition it holds.
    stop : threading.Event, optional
        When set, waiting for replies ends with :class:`FedleakError`.
    poll : float
        Seconds between two looks for replies.
    patience : float
        Seconds to wait, at the start, for nodes with the partitions that are missing.
    known : callable
        Returns, once all nodes are there, the partitions of those that need not be asked.
    """

    def __init__(
        self,
        grid: Grid,
        clients: int,
        timeout: float,
        stop: threading.Event | None = None,
        *,
        poll: float = _POLL,
        patience: float = 0.0,
        known: Callable[[], Mapping[int, int]] = dict,
    ) -> None:
        super().__init__(grid)
        self._stop = stop or threading.Event()
        self._poll = poll
        deadline = time.monotonic() + patience
        self._wait_for(clients, max(patience, _CONNECTION))
        nodes = list(grid.get_node_ids())
        self.directory = Directory(nodes, clients, lambda messages: self._exchange(messages, timeout), known())
        while self.directory.missing and time.monotonic() < deadline and not self._stop.wait(poll):
            self.directory.learn(grid.get_node_ids(), again=True)
        self.directory.check()

    def get_node_ids(self) -> Iterable[int]:
        """Return the node of each partition, in their order.

        A node that is away just now is among them: which clients are sampled must not depend on that, and a client that
        cannot be reached is a failure of the round, which goes on without it.
        """
        self.directory.learn(self._grid.get_node_ids())
        return self.directory.nodes

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, wait for the replies until ``timeout`` seconds have passed, and return them by partition."""
        replies = self._exchange(messages, timeout)
        return sorted(replies, key=lambda reply: self.directory.partition(reply.metadata.src_node_id))

    def _exchange(self, messages: Iterable[Message], timeout: float | None = None) -> list[Message]:
        sent = [_expiring(message, timeout) for message in messages]
        ids = list(self._grid.push_messages(sent))
        # A message that cannot be delivered, as to a node that has left for good, has no id.
        to = {key: message.metadata.dst_node_id for key, message in zip(ids, sent, strict=False) if key is not None}
        waiting = set(to)
        replies: list[Message] = []
        deadline = time.monotonic() + timeout if timeout is not None else None
        while waiting and (deadline is None or time.monotonic() < deadline):
            if self._stop.is_set():
                raise FedleakError("interrupted while waiting for the clients")
            arrived = list(self._grid.pull_messages(waiting))
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            for reply in arrived:
                if reply.has_error():  # Flower's own errors may name another sender
                    reply.metadata.__dict__["_src_node_id"] = to[reply.metadata.reply_to_message_id]
            replies += arrived
            if waiting:
                self._stop.wait(self._poll)
        return replies

    def _wait_for(self, clients: int, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (found := len(list(self._grid.get_node_ids()))) < clients:
            if time.monotonic() > deadline or self._stop.is_set():
                raise FedleakError(f"only {found} of {clients} clients connected within {seconds:.0f} s")
            self._stop.wait(self._poll)


def _expiring(message: Message, timeout: float | None) -> Message:
    """Have a train message expire, somewhat after its round; by default that takes Flower twelve hours.

    Clients take their messages one after another, the oldest first: one that was held up would train for all the rounds that are
    over before it comes to the one that waits for it. The margin is for clocks: the SuperLink takes no reply of a client whose
    clock is further ahead than that.
    """
    metadata = message.metadata
    if timeout is not None and timeout < _LONG and metadata.message_type.partition(".")[0] == MessageType.TRAIN:
        age = max(0.0, time.time() - metadata.created_at)
        metadata.ttl = min(metadata.ttl, age + timeout + _SKEW)
    return message
