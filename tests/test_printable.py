"""What others wrote reaches a terminal, a log or a page without control characters and without lines that it forged."""

import logging

import pytest

from fedleak.printable import clean_log, one_line, plural, printable


@pytest.mark.parametrize("character", ["\x00", "\x1b", "\x7f", "\x9b", "\r", "\u202e", "\u2066", "\u200f"])
def test_control_characters_and_turns_of_direction_are_replaced(character: str) -> None:
    assert printable(f"a{character}b") == "a\N{REPLACEMENT CHARACTER}b"


def test_tabs_lines_and_letters_of_any_script_stay() -> None:
    assert printable("a\tb\nc é 猫 עברית") == "a\tb\nc é 猫 עברית"


def test_one_line_is_one_and_is_cut() -> None:
    assert one_line("a\n  b\t\x1b[31mc\n") == "a b \N{REPLACEMENT CHARACTER}[31mc"
    assert one_line("abcdef", 3) == "abc"
    assert one_line(KeyError("x\ny")) == "'x\\ny'"


def test_numbers_and_nouns_agree() -> None:
    assert [plural(amount, "image") for amount in (0, 1, 2, 1000)] == ["0 images", "1 image", "2 images", "1,000 images"]


def test_a_record_of_flowers_log_cannot_forge_another(caplog: pytest.LogCaptureFixture) -> None:
    clean_log()
    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)
    try:
        logger.error("a client sent %s and %d", "x\nERROR: forged\x1b[2J", 3)
        logger.error("two\nlines")
    finally:
        logger.removeHandler(caplog.handler)
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "a client sent x\\nERROR: forged\N{REPLACEMENT CHARACTER}[2J and 3"
    assert "two\n    lines" in said
