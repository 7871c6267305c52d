"""Text that others wrote, made fit to show: no control character of it reaches a terminal, a log or a page."""

from __future__ import annotations

import logging
import re

# C0 and C1 without tab and newline, and the marks that turn the direction of what follows.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return ``text`` with a replacement character for each control character but tabs and newlines."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: object, longest: int | None = None) -> str:
    """Return ``text`` as one line without control characters, of at most ``longest`` characters."""
    return printable(" ".join(str(text).split()))[:longest]


def clean_log() -> None:
    """Have Flower's log hold no control character that a reply brought in."""
    logger = logging.getLogger("flwr")
    if _clean not in logger.filters:
        logger.addFilter(_clean)


def _clean(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), ()
    return True
