"""What is packed into one vector comes out of the mean of such vectors as the mean of what went in."""

import numpy as np
import pytest

from fedleak.secagg.vector import pack, unpack

RANGE = 8.0
SENT = {
    "weight": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32),
    "scale": np.array(2.0, np.float32),
    "batches": np.array(40, np.int64),
}


def client(by: float, steps: int) -> dict[str, np.ndarray]:
    change = np.float32(by)
    return {"weight": SENT["weight"] + change, "scale": SENT["scale"] - change, "batches": SENT["batches"] + steps}


def test_weights_travel_as_their_change_and_counters_as_a_part_of_the_range() -> None:
    vector = pack(client(0.25, 2), SENT, (), RANGE)
    assert vector.dtype == np.float64
    assert vector == pytest.approx([2 * RANGE / 65536, -0.25, 0.25, 0.25, 0.25, 0.25])  # by name: batches, scale, weight


def test_gradients_travel_as_they_are() -> None:
    sent = {"weight": SENT["weight"]}
    gradient = {"weight": np.full((2, 2), 0.125, np.float32)}
    vector = pack(gradient, sent, {"weight"}, RANGE)
    assert vector.tolist() == [0.125] * 4
    assert np.array_equal(unpack(vector, sent, {"weight"}, RANGE)["weight"], gradient["weight"])


def test_the_mean_of_vectors_is_the_mean_of_the_clients_in_the_models_order_and_types() -> None:
    clients = [client(0.5, 2), client(-0.25, 4)]
    found = unpack(np.mean([pack(one, SENT, (), RANGE) for one in clients], axis=0), SENT, (), RANGE)
    assert list(found) == list(SENT)
    for name, like in SENT.items():
        assert (found[name].dtype, found[name].shape) == (like.dtype, like.shape)
        assert np.allclose(found[name], np.mean([one[name] for one in clients], axis=0))
