"""Train messages of rounds that are over do not wait for a client for hours; clocks that differ cost no reply."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.date import now
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation.noop_federation_manager import NoOpFederationManager
from flwr.superlink.grid.inmemory_grid import InMemoryGrid

from fedleak.errors import FedleakError
from fedleak.wire.grid import OrderedGrid

MINUTE, HOUR = 60.0, 3600.0


class Link:
    """A SuperLink with one client, and a grid that reaches it."""

    def __init__(self) -> None:
        factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
        state = factory.state()
        assert isinstance(state, InMemoryLinkState)
        self.state = state
        run = state.create_run(None, None, None, {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run, SUPERLINK_NODE_ID, 1
        self.node = state.create_node("owner", "name", b"k" * 32, heartbeat_interval=HOUR)
        state.activate_node(self.node, heartbeat_interval=HOUR)
        inner = InMemoryGrid(factory)
        inner.set_run(state.get_run_info(run_ids=[run])[0])
        self._stop = threading.Event()
        self.grid = OrderedGrid(inner, 1, 1.0, self._stop, known=lambda: {self.node: 0})
        self._stop.set()  # so that nothing below waits for a reply

    def send(self, kind: str, timeout: float | None) -> None:
        with pytest.raises(FedleakError, match="interrupted"):
            self.grid.send_and_receive([Message(RecordDict(), dst_node_id=self.node, message_type=kind)], timeout=timeout)

    def take(self) -> Message | None:
        """Return the oldest message that waits for the client."""
        return next(iter(self.state.get_message_ins(self.node, limit=1)), None)


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], None]:
    """Have the SuperLink's or the client's clock go ahead by so many seconds."""

    def ahead(whose: str, seconds: float) -> None:
        def there() -> datetime:
            return now() + timedelta(seconds=seconds)

        modules = {
            "superlink": ["flwr.server.superlink.linkstate.in_memory_linkstate", "flwr.server.utils.validator"],
            "client": ["flwr.app.message.message"],
        }
        for module in modules[whose]:
            monkeypatch.setattr(f"{module}.now", there)

    return ahead


@pytest.mark.parametrize(
    ("kind", "timeout", "later", "waits"),
    [
        ("train", MINUTE, 10 * MINUTE, True),
        ("train", MINUTE, 12 * MINUTE, False),
        ("train.own", MINUTE, 12 * MINUTE, False),
        ("train", 30 * MINUTE, 39 * MINUTE, True),
        ("train", 30 * MINUTE, 41 * MINUTE, False),
        ("train", HOUR, 11 * HOUR, True),
        ("train", None, 11 * HOUR, True),
        ("query.grade", MINUTE, 11 * HOUR, True),
    ],
)
def test_a_train_message_expires_some_minutes_after_its_round(
    link: Link, clock: Callable[[str, float], None], kind: str, timeout: float | None, later: float, waits: bool
) -> None:
    link.send(kind, timeout)
    clock("superlink", later)
    assert (link.take() is not None) == waits


def test_a_client_that_was_held_up_is_given_the_message_of_this_round(link: Link, clock: Callable[[str, float], None]) -> None:
    for _ in range(3):
        link.send("train", MINUTE)
    clock("superlink", 20 * MINUTE)
    waiting = Message(RecordDict(), dst_node_id=link.node, message_type="train")
    waiting.metadata.__dict__["_created_at"] += 20 * MINUTE
    with pytest.raises(FedleakError, match="interrupted"):
        link.grid.send_and_receive([waiting], timeout=MINUTE)
    taken = link.take()
    assert taken is not None
    assert taken.metadata.message_id == waiting.metadata.message_id


@pytest.mark.parametrize("ahead", [-24 * HOUR, -9 * MINUTE, 0, 9 * MINUTE])
@pytest.mark.parametrize("whose", ["client", "superlink"])
def test_a_reply_counts_though_clocks_differ(link: Link, clock: Callable[[str, float], None], whose: str, ahead: float) -> None:
    if whose == "superlink":
        clock(whose, ahead)
    link.send("train", MINUTE)
    clock(whose, ahead)
    taken = link.take()
    assert taken is not None
    reply = Message(RecordDict(), reply_to=taken)
    reply.metadata.__dict__["_message_id"] = "reply"
    assert link.state.store_message_res(reply) == "reply"
