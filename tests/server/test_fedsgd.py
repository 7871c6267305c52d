"""FedSGD through the referee, against a step worked out by hand."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedleak.positions.door import Door
from fedleak.seeding import Seed
from fedleak.server.fedsgd import FedSGD
from fedleak.server.referee import Referee
from fedleak.wire.directory import Directory

MODEL = {
    "weight": np.array([1.0, -2.0, 3.0], np.float32),
    "running_mean": np.array([0.5], np.float32),
    "num_batches_tracked": np.array(3, np.int64),
}
BUFFERS = {"running_mean", "num_batches_tracked"}


@pytest.fixture(autouse=True)
def _task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages ask which task they belong to."""
    for name in ("run_id", "node_id", "task_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1, raising=False)


class TwoNodes:
    def get_node_ids(self) -> list[int]:
        return [11, 10]


def whoami(messages: Iterable[Message]) -> list[Message]:
    return [replying(m, RecordDict({"who": MetricRecord({"partition-id": m.metadata.dst_node_id - 10})})) for m in messages]


def replying(message: Message, content: RecordDict) -> Message:
    message.metadata.__dict__["_message_id"] = "1"
    return Message(content, reply_to=message)


def reply(message: Message, gradient: Any, mean: float, counter: int, examples: int) -> Message:
    arrays = {
        "weight": np.asarray(gradient, np.float32),
        "running_mean": np.array([mean], np.float32),
        "num_batches_tracked": np.array(counter, np.int64),
    }
    record = ArrayRecord({name: Array(value) for name, value in arrays.items()})
    return replying(message, RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": examples})}))


def referee(rate: float = 0.1) -> Door:
    strategy = FedSGD(rate, min_available_nodes=2, fraction_evaluate=0.0)
    return Door(Referee(strategy, Seed(1), buffers=BUFFERS), Directory([10, 11], 2, whoami), most_examples=10)


def asked(one: Door) -> list[Message]:
    sent = ArrayRecord({name: Array(value) for name, value in MODEL.items()})
    messages = list(one.configure_train(1, sent, ConfigRecord(), TwoNodes()))  # type: ignore[arg-type]
    for message in messages:
        assert set(message.content.array_records["arrays"]) == set(MODEL)
    return sorted(messages, key=lambda message: message.metadata.dst_node_id)


def test_the_step_is_the_learning_rate_times_the_weighted_mean_gradient() -> None:
    one = referee()
    first, second = asked(one)
    arrays, _ = one.aggregate_train(
        1, [reply(second, [1, 0, -1], 4.0, 5, examples=1), reply(first, [0, 2, 3], 0.0, 4, examples=3)]
    )
    assert arrays is not None
    assert list(arrays) == list(MODEL)
    # Weights 3/4 and 1/4: mean gradient (0.25, 1.5, 2.0); buffers are averaged, and the counter stays whole.
    np.testing.assert_allclose(arrays["weight"].numpy(), [1 - 0.025, -2 - 0.15, 3 - 0.2], rtol=1e-6)
    np.testing.assert_allclose(arrays["running_mean"].numpy(), [1.0], rtol=1e-6)
    counter = arrays["num_batches_tracked"].numpy()
    assert (counter.dtype, counter.shape, int(counter)) == (np.int64, (), 4)
    assert {arrays[name].numpy().dtype for name in ("weight", "running_mean")} == {np.dtype(np.float32)}
    assert one.failures == ()
    assert one.asked == [0, 1]


def test_replies_are_summed_in_the_order_of_partitions() -> None:
    def model(reverse: bool) -> bytes:
        one = referee(rate=1.0)
        messages = asked(one)
        replies = [reply(m, [0.1 + n, 1e-7, 1e7 / 3], 0.1, 1, examples=3 + n) for n, m in enumerate(messages)]
        arrays, _ = one.aggregate_train(1, reversed(replies) if reverse else replies)
        assert arrays is not None
        return arrays["weight"].numpy().tobytes()

    assert model(False) == model(True)


def test_without_good_replies_nothing_is_stepped() -> None:
    one = referee()
    first, second = asked(one)
    assert one.aggregate_train(1, [reply(first, [np.nan, 0, 0], 0.0, 1, examples=1)]) == (None, None)
    assert [failure.client for failure in one.failures] == [0, 1]
    assert one.failures[1].reason == "no reply"


@pytest.mark.parametrize("examples", [0, 11, 2.5])
def test_more_images_than_a_client_can_hold_are_refused(examples: float) -> None:
    one = referee()
    first, second = asked(one)
    arrays, _ = one.aggregate_train(1, [reply(first, [9, 9, 9], 0, 1, examples=examples), reply(second, [0, 0, 0], 0, 1, 10)])  # type: ignore[arg-type]
    assert arrays is not None
    np.testing.assert_array_equal(arrays["weight"].numpy(), MODEL["weight"])
    assert [(failure.client, "num-examples" in failure.reason) for failure in one.failures] == [(0, True)]
