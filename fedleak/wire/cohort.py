"""Several clients behind one update: the reply that stands for a cohort, and the mean that secagg-view shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from flwr.app import Message

from fedleak.runs.folder import Arrays
from fedleak.wire.received import Reply

COHORT = "fedleak.cohort"
"""Name of the record that says which clients a reply stands for."""
LOST = 3
"""Code of an error by which secure aggregation says why a client, or the whole round, is not in the sum."""


def cohort_of(reply: Message) -> tuple[int, ...]:
    """Return the partition ids of the clients that ``reply`` is the mean of, ascending; empty for one client's own reply."""
    record = reply.content.config_records.get(COHORT)
    return () if record is None else tuple(sorted(int(client) for client in cast(list[int], record["clients"])))


def mean_reply(replies: Mapping[int, Reply]) -> Reply:
    """Return one reply with the mean of all, weighted by their numbers of examples, which stands for all their clients.

    Parameters
    ----------
    replies : mapping of int to Reply
        By partition id, at least one; with the same names.
    """
    total = sum(reply.examples for reply in replies.values())
    means: Arrays = {}
    for reply in replies.values():
        for name, values in reply.arrays.items():
            means[name] = means.get(name, 0.0) + values.astype(np.float64) * (reply.examples / total)
    first = replies[min(replies)]
    arrays = {name: _cast(value, first.arrays[name].dtype) for name, value in means.items()}
    return Reply(first.message, arrays, total, tuple(sorted(replies)))


def _cast(values: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return np.asarray(np.rint(values) if dtype.kind in "iu" else values, dtype, order="C")
