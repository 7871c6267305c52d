"""Messages over a pipe: a few facts as JSON, and any number of byte strings beside them."""

from __future__ import annotations

import json
import os
import selectors
import time
from collections.abc import Sequence
from typing import Any

Facts = dict[str, Any]
_LENGTH = 8  # bytes that say how long the facts are
_LONGEST_HEAD = 2**26  # bytes of the facts; more is no message
_MOST = 2**36  # bytes of one byte string
_CHUNK = 2**20


class Ended(Exception):
    """The other end of the pipe is gone."""


class Late(Exception):
    """The deadline has passed."""


class Garbled(Exception):
    """What came is no message."""


def write_frame(pipe: int, facts: Facts, blobs: Sequence[bytes] = (), deadline: float | None = None) -> None:
    """Write one message.

    Parameters
    ----------
    pipe : int
        Descriptor to write to.
    facts : dict
        What JSON can hold.
    blobs : sequence of bytes
        Read back in this order.
    deadline : float, optional
        By ``time.monotonic``; the descriptor must not block then.

    Raises
    ------
    Ended
        If nobody reads any more.
    Late
        If the deadline has passed before all was taken.
    """
    head = json.dumps({"facts": facts, "sizes": [len(blob) for blob in blobs]}).encode()
    for part in (len(head).to_bytes(_LENGTH, "big") + head, *blobs):
        left = memoryview(part)
        while left:
            _await(pipe, selectors.EVENT_WRITE, deadline)
            try:
                left = left[os.write(pipe, left[:_CHUNK]) :]
            except BrokenPipeError as error:
                raise Ended from error


def read_frame(pipe: int, deadline: float | None = None) -> tuple[Facts, list[bytes]]:
    """Read one message, waiting for it.

    Raises
    ------
    Ended
        If the other end is gone, in the middle of a message too.
    Late
        If the deadline has passed before all was there.
    Garbled
        If what came is no message.
    """
    size = int.from_bytes(_read(pipe, _LENGTH, deadline), "big")
    if size > _LONGEST_HEAD:
        raise Garbled(f"{size} bytes of facts")
    text = _read(pipe, size, deadline)
    try:
        head = json.loads(text)
        facts, sizes = head["facts"], head["sizes"]
    except (ValueError, KeyError, TypeError) as error:
        raise Garbled(str(error)) from error
    if not isinstance(facts, dict) or not all(isinstance(size, int) and 0 <= size <= _MOST for size in sizes):
        raise Garbled("facts or sizes of another type")
    return facts, [_read(pipe, size, deadline) for size in sizes]


def _read(pipe: int, size: int, deadline: float | None) -> bytes:
    content = bytearray()
    while len(content) < size:
        _await(pipe, selectors.EVENT_READ, deadline)
        part = os.read(pipe, min(_CHUNK, size - len(content)))
        if not part:
            raise Ended
        content += part
    return bytes(content)


def _await(pipe: int, event: int, deadline: float | None) -> None:
    seconds = None if deadline is None else max(0.0, deadline - time.monotonic())
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, event)
        if not selector.select(seconds):
            raise Late
