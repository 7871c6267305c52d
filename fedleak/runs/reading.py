"""Reads a run folder's files, of which any may be damaged or not what it seems: whole, or refused with one line.

A file is opened without following a link, and must be an ordinary one; what it holds is held against :mod:`fedleak.runs.forms`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedleak.errors import ScenarioError
from fedleak.process.files import open_path
from fedleak.runs.earlier import of_today
from fedleak.runs.forms import LINES, Damaged, Form, fitted

Row = dict[str, Any]
MEND = "--repair sets such lines aside, as in: fedleak report {} --repair"


def check_kinds(root: Path, files: Iterable[str], folders: Iterable[str]) -> None:
    """Refuse a link, or anything else than what is expected, in a place of the folder's own.

    Raises
    ------
    ScenarioError
        With one line that names the first.
    """
    for names, expected, what in ((files, stat.S_ISREG, "an ordinary file"), (folders, stat.S_ISDIR, "a folder")):
        for path in (root / name for name in names):
            try:
                mode = os.lstat(path).st_mode
            except FileNotFoundError:
                continue
            except OSError as error:
                raise ScenarioError(f"{path}: cannot be read ({error.strerror})") from error
            if not expected(mode):
                found = "a link" if stat.S_ISLNK(mode) else "something else"
                raise ScenarioError(f"{path}: is {found}, expected {what}; nothing is written through links: remove it")


@dataclass(frozen=True)
class Lines:
    """What a file of lines holds.

    Attributes
    ----------
    rows : list of dict
        Those that are whole, as today's version would have written them.
    whole : list of bytes
        The same, as they stand in the file.
    damaged : dict of int to (bytes, str)
        By number, from 1: the others as they stand, and what is wrong with each.
    torn : bytes
        The start of a last line that a kill cut short; it counts as not written.
    count : int
        How many lines there are, the torn one not counted.
    """

    rows: list[Row]
    whole: list[bytes]
    damaged: dict[int, tuple[bytes, str]]
    torn: bytes
    count: int


def content(path: Path) -> bytes | None:
    """Return what an ordinary file holds; ``None`` if nothing is there.

    Raises
    ------
    ScenarioError
        If it cannot be read, or is a link, a folder or anything else.
    """
    try:
        with os.fdopen(open_path(path, os.O_RDONLY), "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise ScenarioError(f"{path}: cannot be read ({_why(error)}); expected an ordinary file, and no link") from error


def read_lines(path: Path, form: type[Form] | None = None, of_today: Callable[[Row], Row] = of_today) -> Lines:
    """Read a file of lines, each as ``of_today`` returns it; none if it is not there.

    ``form`` is that of the run folder's file of this name, if it is not given.

    Raises
    ------
    ScenarioError
        If it cannot be read. A damaged line is no reason.
    """
    *lines, torn = (content(path) or b"").split(b"\n")
    form = form or LINES.get(path.name)
    rows, whole, damaged = [], [], {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(fitted(of_today(table_in(line)), form))
            whole.append(line)
        except Damaged as error:
            damaged[number] = line, str(error)
    if torn:
        try:  # only its end may be missing
            rows.append(fitted(of_today(table_in(torn)), form))
            whole.append(torn)
            torn = b""
        except Damaged:
            pass
    return Lines(rows, whole, damaged, torn, len(lines))


def read_rows(
    path: Path, form: type[Form] | None = None, of_today: Callable[[Row], Row] = of_today, remedy: str | None = None
) -> list[Row]:
    """Return the rows of a file of lines, as :func:`read_lines`; a last line torn by a kill is left out.

    Raises
    ------
    ScenarioError
        If a line is damaged; the message names it, and ends with ``remedy``.
    """
    found = read_lines(path, form, of_today)
    if found.damaged:
        number, (_, why) = next(iter(found.damaged.items()))
        more = f", and {len(found.damaged) - 1} more lines" if len(found.damaged) > 1 else ""
        raise ScenarioError(
            f"{path}, line {number} of {found.count}: damaged ({why}){more}; {remedy or MEND.format(path.parent)}"
        )
    return found.rows


def read_table(path: Path, form: type[Form] | None, remedy: str, of_today: Callable[[Row], Row] = lambda row: row) -> Row | None:
    """Return what a JSON file holds, as today's version would have written it; ``None`` if it is not there.

    Raises
    ------
    ScenarioError
        If it is damaged; the message ends with ``remedy``.
    """
    text = content(path)
    if text is None:
        return None
    try:
        return fitted(of_today(table_in(text)), form)
    except Damaged as error:
        raise ScenarioError(f"{path}: damaged ({error}); {remedy}") from error


def table_in(text: bytes, form: type[Form] | None = None) -> Row:
    """Return the table that JSON holds.

    Raises
    ------
    Damaged
        If it holds none, or none that fits the form.
    """
    try:
        value = json.loads(text.decode("utf-8"), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise Damaged("no UTF-8") from error
    except RecursionError as error:
        raise Damaged("nested too deep") from error
    except ValueError as error:
        raise Damaged(f"no JSON: {error}") from error
    return fitted(value, form)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def _why(error: OSError | ValueError) -> str:
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
