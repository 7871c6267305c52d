"""What a train reply must look like, and where it came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from fedleak.arrays import records_of
from fedleak.defenses.base import UNDEFENDED
from fedleak.errors import ReplyError
from fedleak.printable import one_line
from fedleak.runs.folder import Arrays
from fedleak.wire.arrays import SentModel
from fedleak.wire.cohort import LOST, cohort_of
from fedleak.wire.directory import _LONGEST_REASON, Directory
from fedleak.wire.received import Failure, Reply

_UNREACHABLE = (3, 4, 5)  # Flower's codes for a message, a reply or a node that is not there


def sift(
    replies: Sequence[Message],
    sent: Mapping[int, SentModel],
    directory: Directory,
    most_examples: int,
    *,
    summed: bool = False,
) -> tuple[dict[int, Reply], tuple[Failure, ...]]:
    """Part the replies that the protocol allows from the clients that failed, and decode them.

    Parameters
    ----------
    replies : sequence of Message
        As received, of clients that were asked.
    sent : dict of int to SentModel
        The global model that each client was sent, by partition id.
    directory : Directory
        Which node holds which partition.
    most_examples : int
        No client can have trained on more images.
    summed : bool
        Whether the replies come from secure aggregation: one for all clients of the sum, or one error for the round.

    Returns
    -------
    good : dict of int to Reply
        The usable replies by partition id, ascending.
    failures : tuple of Failure
        Every other client that was asked, ascending.
    """
    found: dict[int, Reply] = {}
    reasons: dict[int, str] = dict.fromkeys(sent, "no reply")
    for message in replies:
        client = directory.partition(message.metadata.src_node_id)
        try:
            reply = check_reply(message, sent[client], most_examples * len(sent) if summed else most_examples)
            # Only the server's own end of secure aggregation may speak for several clients.
            found[client] = reply = replace(reply, clients=cohort_of(message) if summed else ())
            for member in reply.clients or (client,):
                reasons.pop(member, None)
        except ReplyError as error:
            reasons[client] = str(error)
            if summed and not found and len(replies) == 1:  # the round's failure
                reasons = {client: str(error)}
    # Flower refuses a whole round if the records or the metrics differ between replies.
    forms = {client: _form(found[client].message) for client in sorted(found)}
    usual = Counter(forms.values()).most_common(1)[0][0] if forms else frozenset[str]()
    for client, form in forms.items():
        if form != usual:
            reasons[client] = f"sent {_some(form - usual)}, while the other clients sent {_some(usual - form)}"
            del found[client]
    failures = tuple(Failure(client, one_line(reasons[client], _LONGEST_REASON)) for client in sorted(reasons))
    return {client: found[client] for client in sorted(found)}, failures


def check_reply(message: Message, sent: SentModel, most_examples: int) -> Reply:
    """Return a reply decoded, if its arrays have the names, shapes and types of ``sent`` and are finite.

    Raises
    ------
    ReplyError
        If the reply is an error, holds nothing, or holds anything but the expected numbers; the message says which.
    """
    if message.has_error():
        reason = one_line(message.error.reason)
        if message.error.code == LOST:
            raise ReplyError(reason)
        if message.error.code in _UNREACHABLE:
            raise ReplyError(f"no reply: {reason.removeprefix('Error: ')[:_LONGEST_REASON]}")
        raise ReplyError(f"the client raised: {reason[-_LONGEST_REASON:]}")
    records, metrics = records_of(message.content, ArrayRecord), records_of(message.content, MetricRecord)
    if len(records) != 1 or len(metrics) != 1:
        raise ReplyError(f"expected one ArrayRecord and one MetricRecord, got {len(records)} and {len(metrics)}")
    examples = _examples(next(iter(metrics.values())), most_examples)
    arrays = next(iter(records.values()))
    if arrays.keys() != sent.forms.keys():
        raise ReplyError(f"other names than the model's: {_some(arrays.keys() ^ sent.forms.keys())}")
    values: Arrays = {}
    for name, array in arrays.items():
        values[name] = sent.decode(name, array)
        if not np.isfinite(values[name]).all():
            raise ReplyError(f"'{name}' holds NaN or infinity")
    own = message.content.config_records.get("fedleak")
    return Reply(message, values, examples, undefended=own is not None and own.get(UNDEFENDED) is True)


def _examples(metrics: MetricRecord, most_examples: int) -> int:
    examples = metrics.get("num-examples")
    if not isinstance(examples, int | float) or not 1 <= examples <= most_examples or examples != int(examples):
        raise ReplyError(f"expected 'num-examples' from 1 to {most_examples}, got {examples!r:.60}")
    for name, value in metrics.items():
        if not np.isfinite(value).all():
            raise ReplyError(f"the metric '{name:.60}' is NaN or infinite")
    return int(examples)


def _form(reply: Message) -> frozenset[str]:
    """Return what must be the same in all replies of a round: how records and metrics are called, and of what kind they are."""
    [(key, metrics)] = records_of(reply.content, MetricRecord).items()
    kinds = {name: f"a list of {len(value)}" if isinstance(value, list) else "a number" for name, value in metrics.items()}
    return frozenset(
        {f"arrays as {name}" for name in records_of(reply.content, ArrayRecord)}
        | {f"metrics as {key}"}
        | {f"{name} as {kind}" for name, kind in kinds.items()}
    )


def _some(names: Iterable[str]) -> str:
    ordered = [repr(name[:60]) for name in sorted(names)]
    return (", ".join(ordered[:3]) or "nothing") + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")
