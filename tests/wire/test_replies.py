"""Good replies apart from bad ones, each of which is named with its reason."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord

from fedleak.wire.cohort import COHORT, LOST
from fedleak.wire.replies import sift

MODEL = {"w": np.ones(3, np.float32), "n": np.array(1)}
Make = Callable[..., Any]


def test_good_replies_come_decoded_and_by_partition(reply: Make, sent: Make, directory: Make) -> None:
    model = sent(MODEL)
    good, failures = sift([reply(client, MODEL, 2 + client) for client in (1, 0)], {0: model, 1: model}, directory(2), 3)
    assert (list(good), failures) == ([0, 1], ())
    assert [(one.examples, one.clients) for one in good.values()] == [(2, ()), (3, ())]
    assert np.array_equal(good[1].arrays["w"], MODEL["w"])
    assert good[1].message.metadata.src_node_id == 101


@pytest.mark.parametrize(
    ("arrays", "examples", "said"),
    [
        ({"w": MODEL["w"]}, 2, "other names than the model's: 'n'"),
        ({**MODEL, "w": np.array([1, np.inf, 0], np.float32)}, 2, "'w' holds NaN or infinity"),
        ({**MODEL, "w": np.ones(4, np.float32)}, 2, "'w' has shape"),
        (MODEL, 4, "expected 'num-examples' from 1 to 3"),
        (MODEL, [2], "expected 'num-examples'"),
    ],
)
def test_what_is_wrong_with_a_reply_is_said(
    reply: Make, sent: Make, directory: Make, arrays: dict[str, Any], examples: Any, said: str
) -> None:
    model = sent(MODEL)
    good, [failure] = sift([reply(0, MODEL), reply(1, arrays, examples)], {0: model, 1: model}, directory(2), 3)
    assert (list(good), failure.client) == ([0], 1)
    assert said in failure.reason


def test_who_sends_nothing_or_an_error_is_named(reply: Make, failed: Make, sent: Make, directory: Make) -> None:
    model = sent(MODEL)
    replies = [failed(0, "RuntimeError:\n out of memory"), reply(1, MODEL), failed(3, "Error: node is away", 4)]
    good, failures = sift(replies, dict.fromkeys(range(4), model), directory(4), 3)
    assert list(good) == [1]
    assert [(failure.client, failure.reason) for failure in failures] == [
        (0, "the client raised: RuntimeError: out of memory"),
        (2, "no reply"),
        (3, "no reply: node is away"),
    ]


def test_each_reply_is_measured_by_what_that_client_was_sent(reply: Make, sent: Make, directory: Make) -> None:
    larger = {**MODEL, "w": np.ones(5, np.float32)}
    good, failures = sift([reply(0, MODEL), reply(1, larger)], {0: sent(MODEL), 1: sent(larger)}, directory(2), 3)
    assert (list(good), failures) == ([0, 1], ())


def test_a_reply_of_another_form_than_the_others_is_left_out(reply: Make, sent: Make, directory: Make) -> None:
    model = sent(MODEL)
    odd = reply(1, MODEL, metrics=MetricRecord({"num-examples": 2, "loss": 1.0}))
    good, [failure] = sift([reply(0, MODEL), odd, reply(2, MODEL)], dict.fromkeys(range(3), model), directory(3), 3)
    assert list(good) == [0, 2]
    assert "'loss as a number'" in failure.reason


def test_only_a_sum_may_speak_for_several_clients(reply: Make, failed: Make, sent: Make, directory: Make) -> None:
    asked = dict.fromkeys(range(3), sent(MODEL))
    whole = reply(0, MODEL, 5, **{COHORT: ConfigRecord({"clients": [0, 1]})})
    good, [failure] = sift([whole, failed(2, "in stage 'unmask': gone", LOST)], asked, directory(3), 2, summed=True)
    assert (good[0].clients, good[0].examples) == ((0, 1), 5)
    assert (failure.client, failure.reason) == (2, "in stage 'unmask': gone")
    good, failures = sift([reply(0, MODEL, 2, **{COHORT: ConfigRecord({"clients": [0, 1]})})], asked, directory(3), 2)
    assert good[0].clients == ()
    assert [failure.client for failure in failures] == [1, 2]


def test_a_sum_that_cannot_be_formed_is_one_failure(failed: Make, sent: Make, directory: Make) -> None:
    asked = dict.fromkeys(range(3), sent(MODEL))
    good, failures = sift([failed(1, "secure aggregation failed", LOST)], asked, directory(3), 2, summed=True)
    assert not good
    assert [(failure.client, failure.reason) for failure in failures] == [(1, "secure aggregation failed")]
