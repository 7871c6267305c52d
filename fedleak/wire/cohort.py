"""Several clients behind one update: the reply that stands for a cohort, and the mean that secagg-view shows."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

COHORT = "fedleak.cohort"
"""Name of the record that says which clients a reply stands for."""
LOST = 3
"""Code of an error by which secure aggregation says why a client, or the whole round, is not in the sum."""


def cohort_of(reply: Message) -> tuple[int, ...]:
    """Return the partition ids of the clients that ``reply`` is the mean of, ascending; empty for one client's own reply."""
    record = reply.content.config_records.get(COHORT)
    return () if record is None else tuple(sorted(int(client) for client in cast(list[int], record["clients"])))


def mean_reply(replies: Mapping[int, Message]) -> Message:
    """Return one reply with the mean of all, weighted by their numbers of examples, which stands for all their clients.

    Parameters
    ----------
    replies : mapping of int to Message
        By partition id, at least one; each of one ArrayRecord and one MetricRecord, with the same names.
    """
    examples = {client: _examples(reply) for client, reply in replies.items()}
    total = sum(examples.values())
    means: dict[str, np.ndarray[Any, Any]] = {}
    types: dict[str, np.dtype[Any]] = {}
    for client, reply in replies.items():
        [arrays] = reply.content.array_records.values()
        for name, array in arrays.items():
            values = array.numpy()
            types[name] = values.dtype
            means[name] = means.get(name, 0.0) + values.astype(np.float64) * (examples[client] / total)
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(_cast(value, types[name])) for name, value in means.items()}),
            "metrics": MetricRecord({"num-examples": total}),
            COHORT: ConfigRecord({"clients": sorted(replies)}),
        }
    )
    mean = copy(replies[min(replies)])  # the replies themselves go on to the strategy
    mean.content = content
    return mean


def _examples(reply: Message) -> int:
    [metrics] = reply.content.metric_records.values()
    return int(cast(int, metrics["num-examples"]))


def _cast(values: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    return np.asarray(np.rint(values) if dtype.kind in "iu" else values, dtype, order="C")
