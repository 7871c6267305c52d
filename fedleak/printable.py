"""Text that others wrote, made fit to show: no control character of it reaches a terminal, a log or a page."""

from __future__ import annotations

import logging
import operator
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

# C0 and C1 without tab and newline, and the marks that turn the direction of what follows.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")

_BREAK = re.compile(r"[\n\u2028\u2029]")
_FURTHER = re.compile(r"[\n\u2028\u2029](?=[^\n])")  # where a further line begins that is not empty
_INDENT = "    "


def printable(text: str) -> str:
    """Return ``text`` with a replacement character for each control character but tabs and newlines."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: object, longest: int | None = None) -> str:
    """Return ``text`` as one line without control characters, of at most ``longest`` characters."""
    return printable(" ".join(str(text).split()))[:longest]


def ending(text: object, longest: int) -> str:
    """Return ``text`` as one line of at most ``longest`` characters, of which the end is kept: there an error says what it is."""
    line = one_line(text)
    return line if len(line) <= longest else "… " + line[2 - longest :]


def clean_log() -> None:
    """Have Flower's log hold no control character that a reply brought in, and no line that it forged.

    An argument stands on one line, and further lines of a message or a traceback are indented, so that none looks like a
    record's first.
    """
    logger = logging.getLogger("flwr")
    if _clean not in logger.filters:
        logger.addFilter(_clean)


def quiet_log(level: int = logging.ERROR) -> None:
    """Keep what is below ``level`` out of Flower's log, and have it clean as by :func:`clean_log`.

    A filter, as Flower sets its logger's own level when it is imported: it need not be imported for this.
    """
    _quiet.level = level
    logger = logging.getLogger("flwr")
    if _quiet not in logger.filters:
        logger.addFilter(_quiet)
    clean_log()


class _Quiet(logging.Filter):
    level = logging.NOTSET

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self.level


_quiet = _Quiet()


def _clean(record: logging.LogRecord) -> bool:
    # A wrong call, or an object that cannot be shown, is logging's to report: it does so where it formats the record, and the
    # program goes on. An object's own text may raise anything.
    with suppress(Exception):
        given = record.args
        args = (
            {key: _argument(value) for key, value in given.items()}
            if isinstance(given, Mapping)
            else tuple(map(_argument, given or ()))
        )
        record.msg, record.args = _indented(str(record.msg) % args if args else str(record.msg)), ()
    with suppress(Exception):
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
    record.exc_text = _indented(f"\n{record.exc_text}")[1:] if record.exc_text else None
    record.stack_info = _indented(f"\n{record.stack_info}")[1:] if record.stack_info else None
    return True


def _indented(text: str) -> str:
    return _FURTHER.sub("\n" + _INDENT, printable(text))


class _Argument:
    """An object that a log message is given: its text is of one line, and where it is a number it stays one."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __str__(self) -> str:
        return _broken(str(self._value))

    def __repr__(self) -> str:
        return _broken(repr(self._value))

    def __index__(self) -> int:
        return operator.index(self._value)

    def __int__(self) -> int:
        return int(self._value)

    def __float__(self) -> float:
        return float(self._value)


def _broken(text: str) -> str:
    """Return ``text`` with each line break written out."""
    return _BREAK.sub(r"\\n", text)


def _argument(value: object) -> object:
    if isinstance(value, str):
        return _broken(value)
    return value if isinstance(value, int | float) else _Argument(value)


def plural(amount: int, noun: str) -> str:
    """Return ``1 image`` or ``2 images``."""
    return f"{amount:,} {noun}" + ("" if amount == 1 else "s")


def span(seconds: float) -> str:
    """Return a time in the unit that suits it: seconds below 90 s, minutes below 90 min, and hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
