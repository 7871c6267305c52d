import gc
from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedleak.engines.inprocess import InProcess, InProcessGrid
from fedleak.engines.select import engine
from fedleak.errors import FedleakError, ScenarioError
from fedleak.scenario.schema import parse_scenario
from fedleak.wire.grid import OrderedGrid

SCENARIO = parse_scenario({"name": "test", "federation": {"clients": 3, "timeout": 0.2}})


def who(message: Message, context: Context) -> Message:
    partition = int(context.node_config["partition-id"])
    return Message(RecordDict({"who": MetricRecord({"partition-id": partition})}), reply_to=message)


def ask(nodes: Iterable[int]) -> list[Message]:
    return [Message(RecordDict({"c": ConfigRecord()}), dst_node_id=node, message_type="query.x") for node in nodes]


def serve(app: Any, use: Any) -> None:
    used = []

    def called(grid: OrderedGrid, directory: Any) -> None:
        use(grid, directory)
        used.append(grid)

    InProcess(app).run(SCENARIO, called)
    assert len(used) == 1, "what is asserted inside was not reached"


def test_clients_answer_by_partition_and_keep_their_state_between_messages() -> None:
    def counting(message: Message, context: Context) -> Message:
        count = int(context.state.metric_records["n"]["n"]) + 1 if "n" in context.state else 1  # type: ignore[arg-type]
        context.state["n"] = MetricRecord({"n": count})
        reply = who(message, context)
        reply.content["count"] = MetricRecord({"count": count})
        return reply

    def use(grid: OrderedGrid, directory: Any) -> None:
        nodes = list(grid.get_node_ids())
        assert [directory.partition(node) for node in nodes] == [0, 1, 2]
        assert [directory.node(partition) for partition in range(3)] == nodes
        replies = list(grid.send_and_receive(ask(reversed(nodes))))
        assert [reply.content.metric_records["who"]["partition-id"] for reply in replies] == [0, 1, 2]
        assert {reply.content.metric_records["count"]["count"] for reply in replies} == {2}

    serve(counting, use)


def test_a_client_computes_only_when_its_reply_is_asked_for() -> None:
    calls = []

    def app(message: Message, context: Context) -> Message:
        calls.append(message.metadata.dst_node_id)
        return who(message, context)

    def use(grid: OrderedGrid, directory: Any) -> None:
        calls.clear()
        first, second = grid.push_messages(ask(list(grid.get_node_ids())[:2]))
        assert calls == []
        grid.pull_messages([second])
        assert len(calls) == 1
        assert list(grid.pull_messages([second])) == []
        grid.pull_messages([first])
        assert len(calls) == 2

    serve(app, use)


@pytest.mark.parametrize("answer", [None, 3, RecordDict()])
def test_what_is_no_message_becomes_an_error(answer: Any) -> None:
    def app(message: Message, context: Context) -> Any:
        return answer if message.metadata.message_type == "query.x" else who(message, context)

    def use(grid: OrderedGrid, directory: Any) -> None:
        assert [reply.has_error() for reply in grid.send_and_receive(ask(grid.get_node_ids()))] == [True] * 3

    serve(app, use)


def test_two_nodes_with_one_partition_are_refused() -> None:
    def app(message: Message, context: Context) -> Message:
        return Message(RecordDict({"who": MetricRecord({"partition-id": 1})}), reply_to=message)

    with pytest.raises(FedleakError, match="partitions 0 to 2"):
        serve(app, lambda grid, directory: None)


def test_a_node_that_does_not_say_who_it_is_ends_the_run_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InProcessGrid, "pull_messages", lambda self, ids: [])
    with pytest.raises(FedleakError, match="found"):
        serve(who, lambda grid, directory: None)


@pytest.mark.parametrize("by_others", [False, True])
def test_what_was_there_before_is_not_searched_for_garbage(by_others: bool) -> None:
    def use(grid: OrderedGrid, directory: Any) -> None:
        assert gc.get_freeze_count()
        raise ZeroDivisionError

    before = gc.get_freeze_count()
    gc.unfreeze()
    if by_others:
        gc.freeze()
    try:
        with pytest.raises(ZeroDivisionError):
            serve(who, use)
        assert bool(gc.get_freeze_count()) == by_others
    finally:
        gc.unfreeze()
        if before:
            gc.freeze()


def test_what_the_server_raises_reaches_the_caller() -> None:
    def use(grid: OrderedGrid, directory: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        serve(who, use)


def test_an_engine_that_runs_elsewhere_is_refused_by_name() -> None:
    with pytest.raises(ScenarioError, match="'deployment' does not run from here"):
        engine("deployment")
    assert isinstance(engine("inprocess"), InProcess)
