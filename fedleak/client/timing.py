"""The Flower mod that says what a client's training and defenses cost in seconds, beside the update."""

from __future__ import annotations

import time
from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message

from fedleak.arrays import records_of
from fedleak.client.mod import is_train
from fedleak.process.abandoned import process_time


def timing_mod(msg: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """Put wall and CPU seconds into ``content["fedleak"]`` of a train reply; other messages and error replies pass as they are.

    Not among the metrics: Flower's strategies average those, and want the same ones of every client.
    """
    if not is_train(msg):
        return call_next(msg, context)
    wall, cpu = time.perf_counter(), process_time()
    reply = call_next(msg, context)
    if not reply.has_error():
        facts = dict(records_of(reply.content, ConfigRecord).get("fedleak", {}))
        spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": process_time() - cpu}
        reply.content["fedleak"] = ConfigRecord(facts | spent)
    return reply
