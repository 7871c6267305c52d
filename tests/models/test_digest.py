import numpy as np

from fedleak.models.digest import model_digest


def test_the_digest_of_a_model_depends_on_every_bit_name_type_and_shape() -> None:
    base = {"a": np.zeros((2, 3), np.float32), "b": np.array(1)}
    others = [
        {"a": np.zeros((3, 2), np.float32), "b": np.array(1)},
        {"a": np.zeros((2, 3), np.float64), "b": np.array(1)},
        {"c": np.zeros((2, 3), np.float32), "b": np.array(1)},
        {"a": np.zeros((2, 3), np.float32), "b": np.array([1])},
        {"a": np.full((2, 3), -0.0, np.float32), "b": np.array(1)},
    ]
    assert model_digest(base) == model_digest(dict(reversed(list(base.items()))))
    assert model_digest(base) == model_digest({**base, "a": np.asfortranarray(base["a"])})
    assert len({model_digest(model) for model in [base, *others]}) == 6
