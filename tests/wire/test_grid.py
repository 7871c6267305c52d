"""Nodes that leave, come back with another id, or answer in somebody else's name."""

import threading
from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedleak.engines.inprocess import InProcessGrid
from fedleak.errors import FedleakError
from fedleak.wire.grid import OrderedGrid


def who(message: Message, context: Context) -> Message:
    return Message(
        RecordDict({"who": MetricRecord({"partition-id": int(context.node_config["partition-id"])})}), reply_to=message
    )


class Changing(InProcessGrid):
    """A grid whose nodes come and go."""

    def __init__(self, app: Any = who, clients: int = 3) -> None:
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        super().__init__(app, clients, "")
        self.away: set[int] = set()
        self.gone: set[int] = set()
        self.misnamed = False

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in super().get_node_ids() if node not in self.away]

    def push_messages(self, messages: Iterable[Message]) -> Any:
        ids = []
        for message in messages:
            gone = message.metadata.dst_node_id in self.gone
            ids.append(None if gone else next(iter(super().push_messages([message]))))
        return ids

    def _deliver(self, message: Message, message_id: str) -> Message:
        reply = super()._deliver(message, message_id)
        if self.misnamed:
            reply = Message(Error(3, "Error: gone"), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = 1
            reply.metadata.__dict__["_reply_to_message_id"] = message_id
        return reply

    def restart(self, node: int, as_node: int) -> None:
        context = self._contexts.pop(node)
        context.node_id = as_node
        self._contexts[as_node] = context


def ask(nodes: Iterable[int]) -> list[Message]:
    return [Message(RecordDict({"c": ConfigRecord()}), dst_node_id=node, message_type="query.x") for node in nodes]


def test_a_node_that_is_away_is_still_sampled() -> None:
    grid = Changing()
    ordered = OrderedGrid(grid, 3, 1.0)
    nodes = list(ordered.get_node_ids())
    grid.away = {nodes[1]}
    assert list(ordered.get_node_ids()) == nodes


def test_a_node_that_comes_back_with_another_id_takes_its_place() -> None:
    grid = Changing()
    ordered = OrderedGrid(grid, 3, 1.0)
    first, second, third = ordered.get_node_ids()
    grid.restart(second, 77)
    assert list(ordered.get_node_ids()) == [first, 77, third]
    assert (ordered.directory.partition(77), ordered.directory.node(1), ordered.directory.partition(second)) == (1, 77, 1)


def test_a_message_that_cannot_be_delivered_is_not_waited_for() -> None:
    grid = Changing()
    ordered = OrderedGrid(grid, 3, 1.0)
    nodes = list(ordered.get_node_ids())
    grid.gone = {nodes[0]}
    replies = list(ordered.send_and_receive(ask(nodes)))
    assert [reply.metadata.src_node_id for reply in replies] == nodes[1:]


def test_an_error_in_the_name_of_the_superlink_counts_for_the_node_that_was_asked() -> None:
    grid = Changing()
    ordered = OrderedGrid(grid, 3, 1.0)
    nodes = list(ordered.get_node_ids())
    grid.misnamed = True
    replies = list(ordered.send_and_receive(ask(nodes)))
    assert [reply.metadata.src_node_id for reply in replies] == nodes


def test_the_start_waits_for_a_node_that_is_missing_or_cannot_say_yet() -> None:
    tries: list[int] = []

    def shy(message: Message, context: Context) -> Message:
        tries.append(int(context.node_config["partition-id"]))
        if tries.count(1) < 3 and context.node_config["partition-id"] == 1:
            raise RuntimeError("still loading")
        return who(message, context)

    assert len(list(OrderedGrid(Changing(shy), 3, 1.0, patience=20.0).get_node_ids())) == 3
    tries.clear()
    with pytest.raises(FedleakError, match="found \\[0, 2\\]; a node did not say .*still loading"):
        OrderedGrid(Changing(shy), 3, 1.0)
    grid = Changing()
    grid.away = {1001}
    threading.Timer(0.3, grid.away.clear).start()
    assert len(list(OrderedGrid(grid, 3, 1.0, patience=20.0).get_node_ids())) == 3


def test_nodes_whose_partition_is_known_are_not_asked() -> None:
    asked: list[int] = []

    def noting(message: Message, context: Context) -> Message:
        asked.append(context.node_id)
        return who(message, context)

    grid = Changing(noting, clients=5)
    first, second, *others = grid.get_node_ids()
    ordered = OrderedGrid(grid, 5, 1.0, known=lambda: dict(zip(others, (2, 3, 4), strict=True)))
    assert asked == [first, second]
    assert list(ordered.get_node_ids()) == [first, second, *others]


def test_what_was_thought_known_is_refused_where_the_others_contradict_it() -> None:
    grid = Changing(clients=5)
    backwards = dict(zip(reversed(list(grid.get_node_ids())), range(5), strict=True))
    known = {node: partition for node, partition in backwards.items() if partition >= 2}
    with pytest.raises(FedleakError, match="one each"):
        OrderedGrid(grid, 5, 1.0, known=lambda: known)
