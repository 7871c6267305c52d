"""The default engine: real strategy, mods and ClientApp in one process, messages through Flower's own serialisation."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedleak.client.app import app
from fedleak.engines.base import Serve
from fedleak.engines.carried import carried
from fedleak.scenario.schema import Scenario
from fedleak.secagg.client import SecuredApp
from fedleak.seeding import generators_kept
from fedleak.wire.grid import OrderedGrid

_RUN_ID = 1
_FIRST_NODE = 1_000
_CLIENT_RAISED = 2


class InProcess:
    """Run every client in this process, one after the other: nothing to wait for, and a debugger works.

    Parameters
    ----------
    client_app : ClientApp
        What the clients run; by default fedleak's own.
    """

    def __init__(self, client_app: ClientApp = app) -> None:
        self._app = SecuredApp(client_app)

    def run(self, scenario: Scenario, serve: Serve) -> None:
        """Call ``serve`` with a grid to clients that live in this process."""
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = _RUN_ID
        clients = scenario.federation.clients
        grid = OrderedGrid(InProcessGrid(self._app, clients, scenario.to_json()), clients, scenario.federation.timeout)
        with _frozen():
            serve(grid, grid.directory)


class InProcessGrid(Grid):
    """A grid that calls the ClientApp when its reply is pulled.

    A client computes only once its reply is asked for, so that no more than one round's messages exist at a time.

    Parameters
    ----------
    client_app : ClientApp
        Called with each message, as its own SuperNode would.
    clients : int
        Number of nodes.
    scenario_json : str
        Given to each client as ``run_config["scenario"]``.
    """

    def __init__(self, client_app: ClientApp, clients: int, scenario_json: str) -> None:
        self._app = client_app
        self._run = Run.create_empty(run_id=_RUN_ID)
        self._pending: dict[str, Message] = {}
        self._sent = 0
        self._contexts = {
            _FIRST_NODE + client: Context(
                run_id=_RUN_ID,
                node_id=_FIRST_NODE + client,
                node_config={"partition-id": client, "num-partitions": clients},
                state=RecordDict(),
                run_config={"scenario": scenario_json},
            )
            for client in range(clients)
        }

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return all node ids, by partition."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages; return their ids."""
        ids = []
        for message in messages:
            self._sent += 1
            message_id = str(self._sent)
            message.metadata.__dict__["_message_id"] = message_id
            self._pending[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the clients that these messages went to, and return their replies."""
        with generators_kept():
            return list(self._replies(sorted(message_ids, key=int)))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push and pull; nothing can time out."""
        return self.pull_messages(self.push_messages(messages))

    def _replies(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for message_id in message_ids:
            if message_id in self._pending:
                yield self._deliver(self._pending.pop(message_id), message_id)

    def _deliver(self, message: Message, message_id: str) -> Message:
        received = carried(message)
        try:
            reply = carried(self._app(received, self._contexts[message.metadata.dst_node_id]))
        except KeyboardInterrupt:
            raise
        # A client may raise anything, or return what is no message; like Flower's own engines, answer for it with an error.
        except BaseException as error:  # noqa: BLE001
            reply = Message(Error(code=_CLIENT_RAISED, reason=f"{type(error).__name__}: {error}"), reply_to=received)
        reply.metadata.__dict__["_message_id"] = f"{message_id}-reply"
        return reply


@contextmanager
def _frozen() -> Iterator[None]:
    """Have garbage collected without a walk through what is there before, all of PyTorch: some strategies ask for it often."""
    if gc.get_freeze_count():  # whoever froze that is to unfreeze it
        yield
        return
    gc.collect()  # what is garbage now would stay
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
