"""What a reply costs, worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, RecordDict

from fedleak.scenario.schema import parse_scenario
from fedleak.server.costs import Meter, coded_bits, value_bits
from fedleak.wire.arrays import SentModel
from fedleak.wire.received import Reply

DENSE = np.arange(1, 101, dtype=np.float32).reshape(10, 10)


def scenario(protocol: str = "fedsgd", **tables: Any) -> Any:
    return parse_scenario({"name": "x", "federation": {"protocol": protocol}, **tables})


def reply(arrays: dict[str, Any], **facts: Any) -> Reply:
    record = ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})
    content = RecordDict({"arrays": record, "fedleak": ConfigRecord({"buffers": [], **facts})})
    message = Message(content, metadata=Metadata(1, "1", 0, 1, "", "", 0.0, 3600.0, "train"))
    return Reply(message, {name: np.asarray(value) for name, value in arrays.items()}, 1)


def sent(arrays: dict[str, Any]) -> SentModel:
    return SentModel(ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()}))


def test_a_dense_gradient_is_coded_as_it_is() -> None:
    found = Meter(scenario(), set()).read(reply({"w": DENSE}), sent({"w": DENSE}))
    assert found["coded_bytes"] == 400
    assert found["bytes"] > 400  # the header of NumPy's format


def test_zeros_of_a_gradient_are_left_out_and_the_others_carry_an_index() -> None:
    sparse = np.where(DENSE <= 10, DENSE, 0).astype(np.float32)
    found = Meter(scenario(), set()).read(reply({"w": sparse}), sent({"w": DENSE}))
    assert found["coded_bytes"] == math.ceil(10 * (32 + 7) / 8)


def test_of_weights_the_change_is_coded() -> None:
    after = DENSE.copy()
    after[0, :3] += 1
    found = Meter(scenario("fedavg"), set()).read(reply({"w": after}), sent({"w": DENSE}))
    assert found["coded_bytes"] == math.ceil(3 * (32 + 7) / 8)
    untouched = Meter(scenario("fedavg"), set()).read(reply({"w": DENSE}), sent({"w": DENSE}))
    assert untouched["coded_bytes"] == 0


def test_buffers_are_sent_as_they_are() -> None:
    arrays = {"w": np.zeros(8, np.float32), "counter": np.array(3, np.int64)}
    assert Meter(scenario(), {"counter"}).read(reply(arrays), sent(arrays))["coded_bytes"] == 8


@pytest.mark.parametrize(
    ("defenses", "bits"),
    [
        ([], None),
        ([{"name": "quantization", "format": "fp16"}], 16),
        ([{"name": "quantization", "format": "int8"}, {"name": "gradient-pruning", "ratio": 0.5}], 8),
        ([{"name": "random-masking", "p": 0.5, "rescale": True}, {"name": "quantization", "format": "bf16"}], 16),
        ([{"name": "quantization", "format": "int8"}, {"name": "gaussian-noise", "std": 0.1}], None),
        ([{"name": "quantization", "format": "int8"}, {"name": "dropout"}], 8),
        ([{"name": "quantization", "format": "fp32"}], None),
    ],
)
def test_the_last_defense_that_changes_values_says_how_many_bits_they_need(defenses: Any, bits: float | None) -> None:
    assert value_bits(scenario(defenses=defenses)) == bits


def test_fewer_bits_make_fewer_bytes() -> None:
    defended = scenario(defenses=[{"name": "quantization", "format": "int8"}])
    assert Meter(defended, set()).read(reply({"w": DENSE}), sent({"w": DENSE}))["coded_bytes"] == 100


def test_one_value_needs_no_index() -> None:
    assert coded_bits(np.array([True]), 32) == 32
    assert coded_bits(np.array([], dtype=bool), 32) == 0
    # Three of four with two bits of index each are more than four without.
    assert coded_bits(np.array([True, True, True, False]), 8) == min(32, 30)
    assert coded_bits(np.array([True, True, True, True]), 8) == 32


@pytest.mark.parametrize("said", ["fast", -1.0, math.inf, math.nan, True, [1.0]])
def test_seconds_are_the_clients_word_and_nonsense_is_none(said: Any) -> None:
    assert Meter(scenario(), set()).read(reply({"w": DENSE}, seconds=said), sent({"w": DENSE}))["seconds"] is None
    told = Meter(scenario(), set()).read(reply({"w": DENSE}, seconds=1.25, cpu_seconds=1), sent({"w": DENSE}))
    assert (told["seconds"], told["cpu_seconds"]) == (1.25, 1.0)


def test_a_client_of_another_kind_may_say_nothing() -> None:
    silent = reply({"w": DENSE})
    del silent.message.content["fedleak"]
    assert Meter(scenario(), set()).read(silent, sent({"w": DENSE}))["cpu_seconds"] is None
