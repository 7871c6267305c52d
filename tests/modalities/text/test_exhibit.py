import pytest
from matplotlib.figure import Figure

from fedleak.modalities.text.coding import encode_all
from fedleak.modalities.text.exhibit import EXHIBIT, printable
from fedleak.modalities.text.spec import TOKENS


def file(text):
    return EXHIBIT.encode({TOKENS: encode_all([text], 24)})


def test_wrong_tokens_are_marked_and_right_ones_are_not():
    shown = EXHIBIT.html(file("sour plum"), 96, "rebuilt", file("ripe plum"))
    assert "<mark>sour</mark><span> plum</span>" in shown
    assert "<mark>" not in EXHIBIT.html(file("plum"), 96, "rebuilt", file("plum"))
    assert "<mark>" not in EXHIBIT.html(file("plum"), 96, "private", None)


@pytest.mark.parametrize("hostile", ["<script>x</script>", "\u202egnp.exe", "a\x07b", '" onload="'])
def test_hostile_text_stays_text(hostile):
    shown = EXHIBIT.html(file(hostile), 96, hostile, None)
    assert "<script" not in shown
    assert not any(one in shown for one in "\u202e\x07")
    assert 'onload="' not in shown


def test_what_controls_is_shown_as_a_box():
    assert printable("a\u202eb\nc") == "a\u25a1b\u25a1c"


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"tokens": []}', b'{"tokens": ["x"]}'])
def test_damaged_files_are_not_whole(damage):
    assert EXHIBIT.is_whole(file("whole"))
    assert not EXHIBIT.is_whole(damage)


def test_it_is_drawn_as_text():
    axes = Figure().subplots()
    EXHIBIT.draw(axes, file("$plums$ _and_ ^figs^"), 96)
    assert axes.texts[0].get_text() == "$plums$ _and_ ^figs^"
