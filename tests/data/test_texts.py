import numpy as np

from fedleak.data.texts import TextSet
from fedleak.modalities.text.coding import encode


def test_passages_are_loaded_as_tokens_in_the_order_asked():
    texts = TextSet(["one", "two", "three"], np.array([0, 1, 0]), 10)
    assert texts.load([2, 0]).tolist() == [encode("three", 10), encode("one", 10)]
    assert texts.load([]).shape == (0, 10)
    assert len(texts) == 3
