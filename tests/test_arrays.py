from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedleak.arrays import array_of, copy_of, record_of, records_of, shared_tensors_of, tensor_of, tensors_of, values_of

VALUES = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.arange(6, dtype=np.float64).reshape(3, 2).T,
    np.array(7, dtype=np.int64),
    np.array([True, False]),
    np.zeros((2, 0, 3), dtype=np.float32),
    np.arange(4, dtype=np.uint8),
    np.arange(3, dtype=np.float16),
    np.arange(3, dtype=">f4"),
    np.arange(8, dtype=np.float32)[::2],
]


@pytest.mark.parametrize("values", VALUES, ids=str)
def test_an_array_is_flowers_own_to_the_byte(values: Any) -> None:
    ours, flowers = array_of(values), Array(values)
    assert type(ours) is Array
    assert ours == flowers
    for read in (values_of(ours), values_of(copy_of(ours)), values_of(flowers)):
        assert read.dtype == values.dtype
        assert np.array_equal(read, values)
        assert read.shape == values.shape


@pytest.mark.parametrize("values", [value for value in VALUES if value.dtype.isnative], ids=str)
def test_a_tensor_holds_the_values_in_memory_of_its_own(values: Any) -> None:
    array = array_of(values)
    tensor = tensor_of(array)
    assert torch.equal(tensor, ArrayRecord({"a": array}).to_torch_state_dict()["a"])
    if tensor.numel():
        tensor.view(-1)[0] = 1
        assert np.array_equal(values_of(array), values)


def test_a_record_goes_there_and_back() -> None:
    tensors = {"w": torch.randn(3, 4), "n": torch.tensor(3), "g": torch.randn(2, requires_grad=True)}
    record = record_of(tensors)
    assert record == ArrayRecord({name: value.detach() for name, value in tensors.items()})
    assert all(torch.equal(value, tensors[name]) for name, value in tensors_of(record).items())


def test_tensors_are_shared_by_records_of_the_same_bytes_only() -> None:
    record = record_of({"w": torch.randn(3), "b": torch.randn(2)})
    first = shared_tensors_of(record)
    again = shared_tensors_of({name: copy_of(array) for name, array in record.items()})
    assert all(again[name] is first[name] for name in record)
    again.clear()
    assert list(shared_tensors_of(record)) == ["w", "b"]
    changed = {"w": array_of(np.ones(3, dtype=np.float32)), "b": record["b"]}
    for other in (changed, {"b": record["b"], "w": record["w"]}, {"w": record["w"]}, {"w": record["b"], "b": record["w"]}):
        found = shared_tensors_of(other)
        assert list(found) == list(other)
        assert all(torch.equal(found[name], tensor_of(array)) for name, array in other.items())
        assert all(found[name] is not value for name, value in first.items() if name in found)


def test_records_are_those_of_one_kind() -> None:
    content = RecordDict({"a": record_of({}), "c": ConfigRecord({"n": 1}), "d": ConfigRecord()})
    assert records_of(content, ConfigRecord) == dict(content.config_records)
    assert records_of(content, ArrayRecord)["a"] is content["a"]


def test_values_that_are_shared_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        values_of(Array(np.ones(3)))[0] = 5


def raw(data: bytes, **fields: Any) -> Array:
    return Array(**{"dtype": "float64", "shape": (3,), "stype": "numpy.ndarray", "data": data} | fields)


def pickled() -> bytes:
    file = BytesIO()
    np.save(file, np.array([{}]), allow_pickle=True)
    return file.getvalue()


WHOLE = Array(np.ones(3)).data


@pytest.mark.parametrize(
    "data", [b"", WHOLE[:8], WHOLE[:60], WHOLE[:-1], b"x" + WHOLE, pickled(), WHOLE.replace(b"(3,)", b"(-3)")], ids=repr
)
def test_bytes_that_are_no_array_are_refused_as_flower_refuses_them(data: bytes) -> None:
    array = raw(data)
    with pytest.raises(Exception) as expected:  # noqa: PT011 (whatever it is)
        array.numpy()
    with pytest.raises(type(expected.value)):
        values_of(array)


def test_another_serialisation_is_refused() -> None:
    with pytest.raises(TypeError, match="Unsupported serialization"):
        values_of(raw(WHOLE, stype="torch.Tensor"))


@pytest.mark.parametrize("fields", [{"data": bytearray(WHOLE)}, {"shape": [3]}, {"shape": ("3",)}, {"dtype": 3}])
def test_fields_of_other_types_are_refused(fields: Any) -> None:
    array = raw(WHOLE)
    array.__dict__.update(fields)
    with pytest.raises(TypeError):
        copy_of(array)
