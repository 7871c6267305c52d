"""What fedleak asks the clients of somebody else's app: with what the app's own mods read, and under names that it does not use.

A mod is called for every message and may read the round or the learning rate from ``content["config"]``, whatever the message is
about. So a question carries the configuration that the node was sent to train by, and fedleak's own beside it.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable, Mapping

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedleak.wire.grid import DelegatingGrid

CONFIG = "config"
"""Name of the record by which fedleak's handlers are told what is asked."""
ROUND = "server-round"
_OWN = "fedleak.config"  # where it travels: the app's own may be called like it
_PREFIX = "fedleak_"
_QUERY = "query."

Configs = Mapping[str, ConfigRecord]


def action(name: str) -> str:
    """Return the action that one of fedleak's questions has in an app that may have questions of its own."""
    return _PREFIX + name


def dressed(question: Message, configs: Configs, server_round: int) -> Message:
    """Return a question as it is sent: the app's configuration in its place, and fedleak's own beside it.

    Parameters
    ----------
    question : Message
        One of fedleak's, such as ``query.grade``.
    configs : mapping of str to ConfigRecord
        What the node was sent beside the model, by name.
    server_round : int
        From 1.
    """
    own = ConfigRecord(dict(question.content.config_records.get(CONFIG, {})))
    apps = {name: ConfigRecord(dict(record)) for name, record in configs.items()} or {CONFIG: ConfigRecord()}
    for record in (own, *apps.values()):
        record.setdefault(ROUND, server_round)
    records = {name: record for name, record in question.content.items() if name != CONFIG}
    kind = _QUERY + action(question.metadata.message_type.removeprefix(_QUERY))
    return Message(RecordDict({**records, **apps, _OWN: own}), question.metadata.dst_node_id, kind)


def undressed(message: Message) -> Message:
    """Return a question as fedleak's handlers read it; the message itself stays as the app's mods know it."""
    own = copy.copy(message)
    content = {name: record for name, record in message.content.items() if name not in (CONFIG, _OWN)}
    own.content = RecordDict({**content, CONFIG: message.content.config_records.get(_OWN, ConfigRecord())})
    return own


class QuestionGrid(DelegatingGrid):
    """Sends fedleak's questions through the app's own grid, and nothing once it is told to stop.

    Parameters
    ----------
    grid : Grid
        The app's own.
    configs : callable
        Returns what a node was sent beside the model.
    patience : float
        Seconds that the clients are given to answer, at most.
    stopped : threading.Event
        When set, nothing is asked any more.

    Attributes
    ----------
    round : int
        The round that is asked about, from 1.
    """

    def __init__(self, grid: Grid, configs: Callable[[int], Configs], patience: float, stopped: threading.Event) -> None:
        self.round = 1
        super().__init__(grid)
        self._configs, self._patience, self._stopped = configs, patience, stopped

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Ask, and wait for the answers for as long as there is patience."""
        asked = [dressed(message, self._configs(message.metadata.dst_node_id), self.round) for message in messages]
        if self._stopped.is_set() or not asked:
            return []
        return self._grid.send_and_receive(asked, timeout=min(self._patience, timeout or self._patience))
