"""Files written whole, and never through a symbolic link in the folder: who hands one over must not choose the place.

Each folder below the root, and the file itself, is opened without following links. A file is written under a name drawn at
random, and then put in its place, so that a reader sees the old one or the new one; a link in that place is replaced.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

OWNER_ONLY = 0o600
OWNER_ALONE = 0o700
"""The same of folders."""
UNFINISHED = ".tmp"
"""How the name of a file ends that a kill left half-written."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def write_whole(root: Path, name: str, content: bytes | memoryview, *, sync: bool = True) -> Path:
    """Write a file whole, readable by its owner alone; return its path.

    Parameters
    ----------
    root : Path
        The folder, which the caller chose: a link that it is, or lies in, is followed.
    name : str
        Path of the file below it, such as ``"images/r001-c000.png"``; the folders are there already.
    content : bytes
        All of it.
    sync : bool
        Whether to wait until it is on the disk.

    Raises
    ------
    OSError
        If it cannot be written, or a folder on the way is a link (``ELOOP`` or ``ENOTDIR``).
    """
    with _holding(root, name) as (folder, last):
        temporary = f"{last}.{secrets.token_hex(8)}{UNFINISHED}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(temporary, flags, OWNER_ONLY, dir_fd=folder), "wb", buffering=0) as file:
                _write_all(file.fileno(), content)
                if sync:
                    os.fsync(file.fileno())
            os.replace(temporary, last, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:  # an interrupt must leave no half-written file either
            with suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise
    return root / name


def append(root: Path, name: str, content: bytes) -> None:
    """Append to a file, made where there is none, and flush it to the disk: all of ``content``, or nothing of it.

    Raises
    ------
    OSError
        If it cannot be written, or is a link (``ELOOP``), or no ordinary file (``EINVAL``).
    """
    with _holding(root, name) as (folder, last):
        file = open_within(folder, last, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            before = os.lseek(file, 0, os.SEEK_END)
            try:
                _write_all(file, content)
                os.fsync(file)
            except OSError:
                os.ftruncate(file, before)
                raise
        finally:
            os.close(file)


def remove(root: Path, name: str) -> None:
    """Remove a file, or a link in its place, if it is there.

    Raises
    ------
    OSError
        If it is a folder, or cannot be removed, or a folder on the way is a link.
    """
    with suppress(FileNotFoundError), _holding(root, name) as (folder, last):
        os.unlink(last, dir_fd=folder)


def names(root: Path, name: str = "") -> list[str]:
    """Return the names in the folder ``name`` below ``root``, by default in ``root``, sorted; none if it is not there.

    Raises
    ------
    OSError
        If it is a link (``ELOOP`` or ``ENOTDIR``), or no folder.
    """
    try:
        with _holding(root, f"{name}/any" if name else "any") as (folder, _):
            return sorted(entry.name for entry in os.scandir(folder))
    except FileNotFoundError:
        return []


def make_folder(root: Path, name: str) -> None:
    """Make a folder below ``root``, its owner's alone, if it is not there.

    Raises
    ------
    OSError
        If a link or anything else is in its place (``ELOOP``, ``ENOTDIR``), or it cannot be made.
    """
    with _holding(root, name) as (folder, last):
        with suppress(FileExistsError):
            os.mkdir(last, OWNER_ALONE, dir_fd=folder)
        os.close(os.open(last, _FOLDER, dir_fd=folder))


def remove_folder(root: Path, name: str) -> None:
    """Remove an empty folder below ``root``.

    Raises
    ------
    OSError
        If it is not there or not empty, or a link.
    """
    with _holding(root, name) as (folder, last):
        os.rmdir(last, dir_fd=folder)


def open_within(folder: int, name: str, flags: int) -> int:
    """Return a descriptor of the ordinary file ``name`` in the open folder, its owner's alone where it is made.

    Raises
    ------
    OSError
        If it cannot be opened, or is a link (``ELOOP``), or no ordinary file (``EINVAL``).
    """
    # Without waiting for the other end, should it be a pipe.
    file = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, OWNER_ONLY, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "no ordinary file", name)
    return file


def open_path(path: Path, flags: int) -> int:
    """Return a descriptor of the ordinary file at ``path``, not followed if it is a link; see :func:`open_within`."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_within(folder, path.name, flags)
    finally:
        os.close(folder)


@contextmanager
def _holding(root: Path, name: str) -> Iterator[tuple[int, str]]:
    """Hold the folder that the file lies in open; give its descriptor, and the file's name in it."""
    *folders, last = PurePosixPath(name).parts
    held = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            below = os.open(folder, _FOLDER, dir_fd=held)
            os.close(held)
            held = below
        yield held, last
    finally:
        os.close(held)


def _write_all(file: int, content: bytes | memoryview) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(file, left) :]
