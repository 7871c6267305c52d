"""The clients' secret: what they draw noise, masks, batches and dropout from, and no server or attack is told.

A scenario may hold one, 32 hexadecimal digits; without, each run draws one. Servers know its fingerprint alone (SHA-256: of 128
random bits it gives nothing away), by which a folder or a machine can tell whether it holds the right one.

It is kept in files of mode 600: ``client.secret`` in the run folder of an engine whose clients run on this machine; on a machine
of a deployment a folder ``secrets`` with one file for each secret, named by its fingerprint, and ``any`` for scenarios without
one. The mode keeps other users out; a program of the same user that searches the disk can read it.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from fedleak.errors import ScenarioError
from fedleak.process.files import open_path, write_whole

DIGITS = 32
KEPT, FOLDER, ANY = "client.secret", "secrets", "any"
_MARK = "sha256:"
_SECRET = re.compile(rf"[0-9a-f]{{{DIGITS}}}")
_FINGERPRINT = re.compile(rf"{_MARK}[0-9a-f]{{64}}")


def draw() -> str:
    """Return a new secret, by the system's generator."""
    return secrets.token_hex(DIGITS // 2)


def checked(value: object) -> object:
    """Return a scenario's value of the key, a secret or a fingerprint, in lower case.

    Raises
    ------
    ValueError
        If it is neither; the message does not repeat it.
    """
    expected = f'expected {DIGITS} hexadecimal digits in quotes, such as "{"0f" * (DIGITS // 2)}" but random'
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{expected}, got no text")
    found = value.lower()
    if not (_SECRET.fullmatch(found) or _FINGERPRINT.fullmatch(found)):
        raise ValueError(
            f"{expected}, got {len(value)} characters" + (", not all of them such digits" if len(value) == DIGITS else "")
        )
    return found


def is_secret(value: str | None) -> bool:
    """Say whether a value is a secret itself, and not its fingerprint or nothing."""
    return value is not None and _SECRET.fullmatch(value) is not None


def fingerprint(value: str | None) -> str | None:
    """Return what may be told of a secret; of a fingerprint or nothing, the same."""
    return f"{_MARK}{hashlib.sha256(value.encode()).hexdigest()}" if value is not None and is_secret(value) else value


def kept(folder: Path) -> str | None:
    """Return the secret in a run's folder; ``None`` where it holds none.

    Raises
    ------
    ScenarioError
        If the file cannot be read, or holds something else.
    """
    return _read(folder / KEPT)


def secret_of(folder: Path) -> str:
    """Return the secret that a folder of several runs keeps for those without one; draw it where it keeps none yet.

    Raises
    ------
    ScenarioError
        If the folder or the file cannot be made, or the file holds something else.
    """
    found = kept(folder) if folder.exists() else None
    if found is None:
        _write(folder, KEPT, found := draw())
    return found


def place(folder: Path, secret: str, *, named: bool) -> None:
    """Write a secret below a machine's ``folder``: by its fingerprint, or as the one for all scenarios without one.

    Raises
    ------
    ScenarioError
        If it cannot be written.
    """
    _write(folder / FOLDER, _file_name(fingerprint(secret) if named else None), secret)


def placed(folders: Iterable[Path], wanted: str | None) -> str | None:
    """Return what :func:`place` wrote below one of the folders.

    Parameters
    ----------
    folders : iterable of Path
        In order.
    wanted : str or None
        The fingerprint of a scenario's secret; ``None`` for a scenario without one.

    Raises
    ------
    ScenarioError
        If a file cannot be read, or holds something else than its name says.
    """
    for folder in folders:
        path = folder / FOLDER / _file_name(wanted)
        found = _read(path)
        if found is not None:
            if wanted is not None and fingerprint(found) != wanted:
                raise ScenarioError(
                    f"{path}: holds another secret than its name says; write it again with: fedleak deploy shards"
                )
            return found
    return None


def _write(folder: Path, name: str, secret: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(folder, name, f"{secret}\n".encode())
    except OSError as error:
        raise ScenarioError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error


def _file_name(wanted: str | None) -> str:
    return ANY if wanted is None else wanted.removeprefix(_MARK)


def _read(path: Path) -> str | None:
    try:
        with os.fdopen(open_path(path, os.O_RDONLY), "rb") as file:
            text = file.read(4 * DIGITS).decode("ascii", errors="replace").strip().lower()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read ({error.strerror}); expected the clients' secret") from error
    if not is_secret(text):
        raise ScenarioError(f"{path}: expected {DIGITS} hexadecimal digits, the clients' secret, and nothing else")
    return text
