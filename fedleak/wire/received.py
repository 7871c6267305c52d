"""What came back in a round, sifted and decoded: handed to whoever aggregates it and to whoever looks at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Message

from fedleak.runs.folder import Arrays
from fedleak.wire.arrays import SentModel

NOT_ATTACKED = "not attacked: "
"""How the reason begins where a reply that trained the model could not be looked into, in an app of one's own."""


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


@dataclass(frozen=True)
class Reply:
    """A train reply that the protocol allows.

    Attributes
    ----------
    message : Message
        As received; of a mean over several clients, the first one's.
    arrays : dict of str to ndarray
        Its values, with the names, shapes and types of the model that was sent, all finite; not to be written into.
    examples : int
        Images that it says are behind them, at least 1.
    clients : tuple of int
        Whom it stands for where it is the mean of several, ascending; empty for one client's own.
    undefended : bool
        Whether the client says that its defenses left the update as it was.
    """

    message: Message
    arrays: Arrays
    examples: int
    clients: tuple[int, ...] = ()
    undefended: bool = False


@dataclass(frozen=True)
class Received:
    """What came back in a round of training, sifted and decoded.

    Attributes
    ----------
    round : int
        From 1.
    sent : dict of int to SentModel
        What each client was sent, by partition id; one object where all were sent the same.
    good : dict of int to Reply
        The usable replies by partition id, ascending.
    failures : tuple of Failure
        Every other client that was asked, ascending.
    replies : tuple of Message
        All that came, as it came.
    strangers : tuple of int
        Nodes that were asked, and have not said which partition they hold; their replies are among ``replies`` only.
    bytes : int
        Size of all replies, as serialised arrays.
    """

    round: int
    sent: Mapping[int, SentModel]
    good: Mapping[int, Reply]
    failures: tuple[Failure, ...] = ()
    replies: tuple[Message, ...] = ()
    strangers: tuple[int, ...] = ()
    bytes: int = 0

    @property
    def undefended(self) -> list[int]:
        """Partition ids of the clients whose defenses, by their own word, left the update as it was, ascending."""
        return [client for client, reply in self.good.items() if reply.undefended]

    @property
    def asked(self) -> list[int]:
        """Partition ids of the clients that were sent a model, ascending."""
        return sorted(self.sent)
