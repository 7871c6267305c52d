"""Train replies without a federation around them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, Metadata, MetricRecord, RecordDict

from fedleak.wire.arrays import SentModel
from fedleak.wire.directory import Directory

FIRST = 100  # node id of partition 0


def metadata(client: int) -> Metadata:
    return Metadata(1, "1", FIRST + client, 1, "", "", 0.0, 3600.0, "train")


def message(client: int, arrays: dict[str, Any], examples: Any = 2, **records: Any) -> Message:
    record = ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})
    content: dict[str, Any] = {"arrays": record, "metrics": MetricRecord({"num-examples": examples}), **records}
    return Message(RecordDict(content), metadata=metadata(client))


@pytest.fixture
def reply() -> Callable[..., Message]:
    """Return what a client sends, by partition id, arrays and number of examples."""
    return message


@pytest.fixture
def failed() -> Callable[[int, str], Message]:
    """Return what a client sends that raised."""
    return lambda client, reason, code=2: Message(error=Error(code, reason), metadata=metadata(client))


@pytest.fixture
def sent() -> Callable[[dict[str, Any]], SentModel]:
    """Return the model that clients were sent."""
    return lambda arrays: SentModel(ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()}))


@pytest.fixture
def directory() -> Callable[[int], Directory]:
    """Return who holds which partition, of so many."""
    return lambda clients: Directory([], clients, lambda messages: [], {FIRST + client: client for client in range(clients)})
