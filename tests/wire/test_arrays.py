"""Values read in place, against NumPy's own reading of the same bytes."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from fedleak.errors import ReplyError
from fedleak.wire.arrays import DecodedArray, SentModel

FORMS: dict[str, Any] = {
    "float32": np.arange(12, dtype=np.float32).reshape(3, 4) / 7,
    "float64": np.array([1e300, -0.0]),
    "float16": np.array([[1.5]], np.float16),
    "scalar": np.array(3, np.int64),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 4), np.float32),
    "big-endian": np.array([1.5, -2.5], ">f4"),
    "column-major": np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
}


def model(values: Any) -> SentModel:
    return SentModel(ArrayRecord({"w": Array(values)}))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_as_numpy_reads_it(form: str) -> None:
    array = Array(FORMS[form])
    plain, found = array.numpy(), model(FORMS[form]).decode("w", array)
    assert (found.dtype, found.shape, found.tobytes()) == (plain.dtype, plain.shape, plain.tobytes())
    assert not found.flags.writeable


def test_values_with_the_expected_header_are_read_in_place_and_all_others_by_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = Array.numpy
    monkeypatch.setattr(Array, "numpy", lambda self: read.append(1) or plain(self))
    sent, values = model(FORMS["float32"]), FORMS["float32"] + 1
    array = Array(values)
    found = sent.decode("w", array)
    assert np.array_equal(found, values)
    assert np.shares_memory(found, np.frombuffer(array.data, np.uint8))
    assert not read
    turned = Array(np.asfortranarray(values))
    assert np.array_equal(sent.decode("w", turned), values)
    assert len(read) == 1
    longer = BytesIO()
    np.lib.format.write_array(longer, values, version=(2, 0))
    assert np.array_equal(sent.decode("w", Array("float32", (3, 4), array.stype, longer.getvalue())), values)
    assert len(read) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: Array(np.zeros((4, 3), np.float32)), r"has shape \(4, 3\), expected \(3, 4\)"),
        (lambda a: Array(np.zeros((3, 4))), r"holds float64 \(3, 4\), expected float32"),
        (lambda a: Array("float32", (3, 4), a.stype, Array(np.zeros(12, np.float32)).data), r"holds float32 \(12,\)"),
        (lambda a: Array(a.dtype, a.shape, a.stype, a.data[:-1]), "cannot be decoded"),
        (lambda a: Array(a.dtype, a.shape, a.stype, a.data[:8]), "cannot be decoded"),
        (lambda a: Array(a.dtype, a.shape, "pickle", a.data), "cannot be decoded"),
        (lambda a: Array(a.dtype, a.shape, a.stype, b"PK" + a.data), "no NumPy array"),
        (lambda a: Array(a.dtype, a.shape, a.stype, b""), "no NumPy array"),
    ],
)
def test_what_is_no_such_array_is_named(change: Any, said: str) -> None:
    array = Array(FORMS["float32"])
    with pytest.raises(ReplyError, match=said):
        model(FORMS["float32"]).decode("w", change(array))


def test_a_decoded_array_gives_its_values_away_as_flowers_does(monkeypatch: pytest.MonkeyPatch) -> None:
    array = Array(FORMS["float32"])
    values = model(FORMS["float32"]).decode("w", array)
    record = ArrayRecord()
    record["w"] = DecodedArray(array, values)
    monkeypatch.setattr(Array, "numpy", None)  # it must not be needed
    [first] = record.to_numpy_ndarrays()
    first *= 2  # as a strategy clips
    assert np.array_equal(record["w"].numpy(), values)
    assert record.count_bytes() == ArrayRecord({"w": array}).count_bytes()


def test_the_model_that_was_sent_cannot_be_written_into() -> None:
    sent = model(FORMS["float32"])
    assert sent.values["w"] is sent.values["w"]
    with pytest.raises(ValueError, match="read-only"):
        sent.values["w"] += 1
