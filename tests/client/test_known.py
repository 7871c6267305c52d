"""Which models a client knows, in a process that lives on and in one that lives for a message."""

from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, RecordDict

from fedleak.client import known
from fedleak.client.known import find, keep_sent, keep_trained
from fedleak.errors import FedleakError
from fedleak.models.digest import model_digest


@pytest.fixture(autouse=True)
def _new_process() -> Iterator[None]:
    known._latest.clear()
    yield
    known._latest.clear()


def context() -> Context:
    return Context(1, 1, {}, RecordDict(), {})


def model(value: float) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.full(3, value)), "n": Array(np.array(7))})


def digest(value: float) -> str:
    return model_digest({"w": np.full(3, value), "n": np.array(7)})


def value(record: ArrayRecord | None) -> float | None:
    return None if record is None else float(record["w"].numpy()[0])


def test_clients_of_one_process_know_the_latest_two_models() -> None:
    for number in (1, 2, 3):
        record = model(number)
        keep_trained(record, context(), in_state=False)
        record.clear()  # as an app may empty what it was sent
    assert [value(find(context(), digest(number))) for number in (1, 2, 3)] == [None, 2, 3]


def test_a_client_of_its_own_process_knows_the_latest_from_its_state() -> None:
    one, other = context(), context()
    keep_trained(model(1), one, in_state=True)
    keep_trained(model(1), other, in_state=False)
    known._latest.clear()
    assert [value(find(each, digest(1))) for each in (one, other)] == [1, None]
    assert find(one, digest(2)) is None
    keep_trained(model(2), one, in_state=False)
    known._latest.clear()
    assert [value(find(one, digest(number))) for number in (1, 2)] == [None, 2]


def test_a_process_that_knew_none_is_taken_to_live_for_one_message() -> None:
    one, other = context(), context()
    assert value(keep_sent(model(1), one, digest(1))) == 1
    assert value(keep_sent(model(2), other, digest(2))) == 2  # by now the process has shown that it lives on
    assert [len(each.state.array_records) for each in (one, other)] == [1, 0]
    known._latest.clear()
    assert [value(find(one, digest(number))) for number in (1, 2)] == [1, None]


def test_a_model_that_is_not_the_one_named_is_refused() -> None:
    one = context()
    with pytest.raises(FedleakError, match=f"has the digest {digest(1)}, expected {digest(2)}"):
        keep_sent(model(1), one, digest(2))
    assert find(one, digest(1)) is find(one, digest(2)) is None
