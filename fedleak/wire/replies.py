"""What a train reply must look like, and where it came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from tokenize import TokenError
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord

from fedleak.errors import ReplyError
from fedleak.printable import one_line
from fedleak.wire.cohort import LOST, cohort_of
from fedleak.wire.directory import _LONGEST_REASON, Directory

_UNREACHABLE = (3, 4, 5)  # Flower's codes for a message, a reply or a node that is not there
_NPY = b"\x93NUMPY"


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


def sift(
    replies: Iterable[Message],
    sent: ArrayRecord,
    directory: Directory,
    asked: Collection[int],
    most_examples: int,
    *,
    summed: bool = False,
) -> tuple[dict[int, Message], list[Failure]]:
    """Part the replies that the protocol allows from the clients that failed.

    Parameters
    ----------
    replies : iterable of Message
        As received.
    sent : ArrayRecord
        The global model that the clients were sent.
    directory : Directory
        Which node holds which partition.
    asked : collection of int
        Partition ids of the clients that were sent the model.
    most_examples : int
        No client can have trained on more images.
    summed : bool
        Whether the replies come from secure aggregation: one for all clients of the sum, or one error for the round.

    Returns
    -------
    good : dict of int to Message
        The usable replies by partition id, ascending.
    failures : list of Failure
        Every other client that was asked, ascending.
    """
    found: dict[int, Message] = {}
    reasons: dict[int, str] = dict.fromkeys(asked, "no reply")
    replies = list(replies)
    for reply in replies:
        client = directory.partition(reply.metadata.src_node_id)
        try:
            check_reply(reply, sent, most_examples * len(asked) if summed else most_examples)
            found[client] = reply
            # Only the server's own end of secure aggregation may speak for several clients.
            for member in (cohort_of(reply) if summed else ()) or (client,):
                reasons.pop(member, None)
        except ReplyError as error:
            reasons[client] = str(error)
            if summed and not found and len(replies) == 1:  # the round's failure
                reasons = {client: str(error)}
    # Flower refuses a whole round if the records or the metrics differ between replies.
    forms = {client: _form(found[client]) for client in sorted(found)}
    usual = Counter(forms.values()).most_common(1)[0][0] if forms else frozenset[str]()
    for client, form in forms.items():
        if form != usual:
            reasons[client] = f"sent {_some(form - usual)}, while the other clients sent {_some(usual - form)}"
            del found[client]
    failures = [Failure(client, one_line(reasons[client], _LONGEST_REASON)) for client in sorted(reasons)]
    return {client: found[client] for client in sorted(found)}, failures


def check_reply(reply: Message, sent: ArrayRecord, most_examples: int) -> ArrayRecord:
    """Return the reply's arrays if they have the names, shapes and types of ``sent`` and are finite.

    Raises
    ------
    ReplyError
        If the reply is an error, holds nothing, or holds anything but the expected numbers; the message says which.
    """
    if reply.has_error():
        reason = one_line(reply.error.reason)
        if reply.error.code == LOST:
            raise ReplyError(reason)
        if reply.error.code in _UNREACHABLE:
            raise ReplyError(f"no reply: {reason.removeprefix('Error: ')[:_LONGEST_REASON]}")
        raise ReplyError(f"the client raised: {reason[-_LONGEST_REASON:]}")
    records, metrics = reply.content.array_records, reply.content.metric_records
    if len(records) != 1 or len(metrics) != 1:
        raise ReplyError(f"expected one ArrayRecord and one MetricRecord, got {len(records)} and {len(metrics)}")
    _check_metrics(next(iter(metrics.values())), most_examples)
    arrays = next(iter(records.values()))
    if set(arrays) != set(sent):
        raise ReplyError(f"other names than the model's: {_some(set(arrays) ^ set(sent))}")
    for name, array in arrays.items():
        shape, dtype = tuple(sent[name].shape), np.dtype(sent[name].dtype)
        if tuple(array.shape) != shape:
            raise ReplyError(f"'{name}' has shape {tuple(array.shape)}, expected {shape}")
        values = decoded(name, array)
        if values.shape != shape or values.dtype != dtype:
            raise ReplyError(f"'{name}' holds {values.dtype} {values.shape}, expected {dtype} {shape}")
        if not np.isfinite(values).all():
            raise ReplyError(f"'{name}' holds NaN or infinity")
    return arrays


def _check_metrics(metrics: MetricRecord, most_examples: int) -> None:
    examples = metrics.get("num-examples")
    if not isinstance(examples, int | float) or not 1 <= examples <= most_examples or examples != int(examples):
        raise ReplyError(f"expected 'num-examples' from 1 to {most_examples}, got {examples!r:.60}")
    for name, value in metrics.items():
        if not np.isfinite(value).all():
            raise ReplyError(f"the metric '{name:.60}' is NaN or infinite")


def decoded(name: str, array: Array | None) -> np.ndarray[Any, Any]:
    """Return the values of an array that a client sent.

    Raises
    ------
    ReplyError
        If there is none, or its bytes are not NumPy's format.
    """
    if array is None or not array.data.startswith(_NPY):
        raise ReplyError(f"'{name}' is missing, or no NumPy array")
    try:
        values = array.numpy()
    # What NumPy's reader makes of bytes that only look like an array.
    except (ValueError, TypeError, OSError, EOFError, MemoryError, SyntaxError, TokenError) as error:
        raise ReplyError(f"'{name}' cannot be decoded: {error}") from error
    return values


def _form(reply: Message) -> frozenset[str]:
    """Return what must be the same in all replies of a round: how records and metrics are called, and of what kind they are."""
    [(key, metrics)] = reply.content.metric_records.items()
    kinds = {name: f"a list of {len(value)}" if isinstance(value, list) else "a number" for name, value in metrics.items()}
    return frozenset(
        {f"arrays as {name}" for name in reply.content.array_records}
        | {f"metrics as {key}"}
        | {f"{name} as {kind}" for name, kind in kinds.items()}
    )


def _some(names: Iterable[str]) -> str:
    ordered = [repr(name[:60]) for name in sorted(names)]
    return (", ".join(ordered[:3]) or "nothing") + (f" and {len(ordered) - 3} more" if len(ordered) > 3 else "")
