import pytest
from torchmetrics.functional.text import rouge_score

from fedleak.modalities.text.coding import encode_all
from fedleak.modalities.text.metrics import accuracy_matrix, exact_match, rouge, rouge_l, token_accuracy

PAIRS = [
    ("the cat sat on the mat", "the cat lay on the mat"),
    ("On the mat, the cat sat!", "the cat sat on the mat"),
    ("the the the the", "the cat"),
    ("", "the cat"),
    ("nothing shared", "whatever else"),
    ("a b c d e f", "a b c d e f"),
]


def tokens(place):
    return encode_all([pair[place] for pair in PAIRS], 48)


@pytest.mark.parametrize("key", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_that_of_an_independent_implementation(key):
    found = rouge_l(tokens(0), tokens(1)) if key == "rougeL" else rouge(tokens(0), tokens(1), int(key[-1]))
    for value, (one, other) in zip(found.tolist(), PAIRS, strict=True):
        expected = rouge_score(one, other, rouge_keys=key)[f"{key}_fmeasure"]
        assert value == pytest.approx(float(expected), abs=1e-6)


def test_tokens_are_compared_place_by_place_without_padding():
    truth, rebuilt = encode_all(["abcd", "ab"], 8), encode_all(["abxd", "ab"], 8)
    rebuilt[1, 7] = 9  # where the truth is padding
    assert token_accuracy(rebuilt, truth).tolist() == [5 / 6, 1.0]
    assert exact_match(rebuilt, truth).tolist() == [0.0, 1.0]
    assert accuracy_matrix(truth, rebuilt).diagonal().tolist() == [5 / 6, 1.0]
