"""Which node holds which partition: asked once, replaced when it comes back, and refused where it cannot be."""

from collections.abc import Iterable

import pytest
from flwr.app import Error, Message, Metadata, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedleak.errors import FedleakError
from fedleak.wire.directory import Directory


class Nodes:
    """Answers which partition each holds; one without says why it cannot."""

    def __init__(self, **partitions: int | None) -> None:
        self.partitions = {int(name[1:]): partition for name, partition in partitions.items()}
        self.asked: list[int] = []

    def __call__(self, messages: list[Message]) -> Iterable[Message]:
        for message in messages:
            node = message.metadata.dst_node_id
            self.asked.append(node)
            partition = self.partitions[node]
            told = Metadata(1, "1", node, 1, "", "", 0.0, 60.0, message.metadata.message_type)
            if partition is None:
                yield Message(error=Error(2, "no\nfile"), metadata=told)
            else:
                yield Message(RecordDict({"who": MetricRecord({"partition-id": partition})}), metadata=told)


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower makes no message outside of a run."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def test_nodes_stand_in_the_order_of_their_partitions_and_are_asked_once() -> None:
    nodes = Nodes(n70=1, n90=0, n80=5)
    directory = Directory([70, 90, 80], 2, nodes)
    directory.learn([70, 90])
    assert directory.nodes == [90, 70]
    assert (directory.partition(80), directory.node(1), directory.missing) == (5, 70, [])
    assert nodes.asked == [70, 90, 80]
    directory.check()


def test_a_node_that_comes_back_takes_its_earlier_selfs_place() -> None:
    nodes = Nodes(n1=0, n2=1, n3=1)
    directory = Directory([1, 2], 2, nodes)
    directory.learn([3])
    assert directory.nodes == [1, 3]
    assert directory.knows(2)


def test_two_nodes_with_one_partition_and_missing_ones_are_refused() -> None:
    with pytest.raises(FedleakError, match="one each; found \\[0, 0\\]"):
        Directory([1, 2], 2, Nodes(n1=0, n2=0))
    directory = Directory([1, 2], 2, nodes := Nodes(n1=0, n2=None))
    assert (directory.missing, directory.silent) == ([1], ["no file"])
    with pytest.raises(FedleakError, match="found \\[0\\]; a node did not say which partition it holds: no file"):
        directory.check()
    nodes.partitions[2] = 1
    directory.learn([2])
    assert directory.missing == [1], "it is not asked again unless told so"
    directory.learn([2], again=True)
    assert directory.missing == []


def test_what_is_known_is_not_asked() -> None:
    nodes = Nodes(n1=0, n2=1)
    directory = Directory([1, 2], 2, nodes, known={2: 1})
    assert (nodes.asked, directory.nodes) == ([1], [1, 2])
