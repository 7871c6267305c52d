from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.supercore.task_identity import TaskIdentity

from fedleak.engines import carried as room
from fedleak.engines.carried import carried

ARRAYS = ArrayRecord({"weight": Array(np.arange(3.0)), "steps": Array(np.array(7))})


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("run_id", "node_id", "task_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1, raising=False)


class Word(str):
    """A word of another type."""

    __slots__ = ()


def message(**records: Any) -> Message:
    return Message(RecordDict(records), dst_node_id=3, message_type="train", group_id="1")


def config(**values: Any) -> Message:
    return message(config=ConfigRecord(values), arrays=ARRAYS)


def same(one: Message, other: Message) -> bool:
    """Say whether two messages are equal, in the types and the order of their values too."""
    kinds = [
        [(key, type(record), [(name, repr(value)) for name, value in record.items()]) for key, record in m.content.items()]
        for m in (one, other)
    ]
    return kinds[0] == kinds[1] and vars(one.metadata) == vars(other.metadata) and vars(one).keys() == vars(other).keys()


PLAIN: dict[str, Callable[[], Message]] = {
    "train": lambda: config(
        **{"server-round": 3, "lr": 0.1, "last": False, "name": "x", "raw": b"\xff", "ids": [3, 1], "no": []}
    ),
    "metrics": lambda: message(metrics=MetricRecord({"n": 2**63 - 1, "least": -(2**63), "loss": [0.1, float("inf")]}), z=ARRAYS),
    "empty": message,
    "reply": lambda: Message(RecordDict({"m": MetricRecord({"n": 1})}), reply_to=config(a=1)),
}
OTHERS: dict[str, Callable[[], Message]] = {
    "unsigned": lambda: config(n=2**63),
    "unsigned in a list": lambda: config(n=[1, 2**64 - 1]),
    "a word of Unicode": lambda: config(word="ä"),
    "a word of another type": lambda: config(word=Word("x")),
    "truth among numbers": lambda: config(n=[1, True]),
    "a name of Unicode": lambda: config(ä=1),
}


@pytest.mark.parametrize("case", PLAIN)
def test_what_passes_unchanged_arrives_as_if_serialised_without_that(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = PLAIN[case]()
    expected = message_from_proto(message_to_proto(sent))
    monkeypatch.setattr(room, "_serialised", None)
    assert same(carried(sent), expected)


@pytest.mark.parametrize("case", OTHERS)
def test_what_may_change_is_serialised(case: str) -> None:
    sent = OTHERS[case]()
    assert room._copied(sent) is None
    assert same(carried(sent), message_from_proto(message_to_proto(sent)))


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "\ud800"])
def test_what_flower_refuses_is_refused(value: Any) -> None:
    sent = config(value=value)
    with pytest.raises(ValueError, match=r"."):
        message_to_proto(sent)
    with pytest.raises(ValueError, match=r"."):
        carried(sent)


@pytest.mark.parametrize("field", ["_ttl", "_created_at"])
def test_metadata_that_protobuf_changes_is_changed(field: str) -> None:
    sent = config(a=1)
    sent.metadata.__dict__[field] = 5
    assert same(carried(sent), message_from_proto(message_to_proto(sent)))
    assert type(carried(sent).metadata.__dict__[field]) is float


def test_nothing_that_can_be_written_to_is_shared() -> None:
    sent = config(ids=[1, 2])
    arrived = carried(sent)
    arrived.content.config_records["config"]["ids"].append(3)  # type: ignore[union-attr, arg-type]
    arrived.content.array_records["arrays"].pop("weight")
    arrived.content["more"] = MetricRecord()
    arrived.metadata.message_type = "query"
    assert same(sent, message_from_proto(message_to_proto(sent)))
    assert list(sent.content) == ["config", "arrays"]
    assert sent.content.config_records["config"]["ids"] == [1, 2]
    assert sent.metadata.message_type == "train"


def test_an_error_arrives() -> None:
    arrived = carried(Message(Error(2, "no"), reply_to=config(a=1)))
    assert (arrived.error.code, arrived.error.reason) == (2, "no")
