import pytest

from fedleak.modalities.text.coding import END, MASK, PAD, START, VOCABULARY, decode, encode, encode_all


@pytest.mark.parametrize("text", ["Plums.", "", "naïve café, 24 °C", "\u202eturned\x00"])
def test_there_and_back(text):
    tokens = encode(text, 40)
    assert len(tokens) == 40
    assert tokens[0] == START
    assert decode(tokens) == text
    assert set(tokens[tokens.index(END) + 1 :]) <= {PAD}


def test_what_is_too_long_is_cut_and_ends():
    tokens = encode("abcdefgh", 5)
    assert tokens[-1] == END
    assert decode(tokens) == "abc"


def test_bytes_that_are_no_text_and_marks_do_not_stop_it():
    assert decode([START, 259, MASK, 101, PAD]) == "\ufffda"
    assert VOCABULARY == 260


def test_all_at_once():
    assert encode_all(["a", "bc"], 6).tolist() == [encode("a", 6), encode("bc", 6)]
    assert encode_all([], 6).shape == (0, 6)
