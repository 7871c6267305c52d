"""Which rebuilt example stands for which client's private one, where an update is the mean over several clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedleak.errors import ReplyError
from fedleak.evaluation.pairing import assign
from fedleak.modalities.base import Batch, Measure
from fedleak.wire.arrays import decoded
from fedleak.wire.directory import Directory


def assign_over(
    clients: Sequence[int],
    measure: Measure,
    rebuilt: Batch,
    server_round: int,
    directory: Directory,
    grid: Grid,
    timeout: float,
) -> tuple[dict[int, list[int]], dict[int, str]]:
    """Assign ``rebuilt`` to the private examples of all ``clients`` together, so that the sum of the costs is least.

    No client sees another's examples, nor the server any: each client sends what each pair of its own and a rebuilt one costs,
    and the assignment is made here.

    Parameters
    ----------
    clients : sequence of int
        Partition ids.
    measure : Measure
        Says which rebuilt examples can be compared; the others are assigned to no one.
    rebuilt : Batch
        R examples.
    server_round : int
        Whose batches are meant.

    Returns
    -------
    assigned : dict of int to list of int
        For each client, the rebuilt example of each of its own in order; -1 where there are too few.
    errors : dict of int to str
        Why a client is not in ``assigned``.
    """
    arrays, config = ArrayRecord(dict(rebuilt)), ConfigRecord({"server-round": server_round})
    questions = [
        Message(
            RecordDict({"reconstruction": arrays, "config": config}),
            dst_node_id=directory.node(client),
            message_type="query.distances",
        )
        for client in clients
    ]
    usable = measure.usable(rebuilt).numpy()
    errors = dict.fromkeys(clients, "no answer")
    matrices: dict[int, np.ndarray[Any, Any]] = {}
    for reply in grid.send_and_receive(questions, timeout=timeout):
        client = directory.partition(reply.metadata.src_node_id)
        try:
            matrices[client] = _distances(reply, usable)
            del errors[client]
        except ReplyError as error:
            errors[client] = str(error)
    if not matrices:
        return {}, errors
    order = sorted(matrices)
    places = np.flatnonzero(usable)
    found = assign(np.concatenate([matrices[client][:, usable] for client in order]))
    chosen = iter([-1 if place is None else int(places[place]) for place in found])
    return {client: [next(chosen) for _ in matrices[client]] for client in order}, errors


def _distances(reply: Message, usable: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if reply.has_error():
        raise ReplyError(str(reply.error.reason))
    record = reply.content.array_records.get("distances", ArrayRecord())
    values = decoded("distances", record.get("cost"))
    if values.ndim != 2 or not len(values) or values.shape[1] != len(usable) or values.dtype != np.float64:
        raise ReplyError(f"its distances are {values.dtype} {values.shape}, expected float64 and {len(usable)} columns")
    if not np.isfinite(values[:, usable]).all():
        raise ReplyError("its distances hold NaN or infinity")
    return values
