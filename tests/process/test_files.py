"""Files are written whole or not at all, and never through a link that lies in the folder."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fedleak.errors import ScenarioError
from fedleak.process.files import append, make_folder, names, open_path, remove, remove_folder, write_whole
from fedleak.process.lock import Lock

Write = Callable[[Path, str, bytes], object]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file of somebody's, elsewhere."""
    file = tmp_path / "elsewhere" / "precious"
    file.parent.mkdir()
    file.write_bytes(b"kept")
    return file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "images").mkdir(parents=True)
    return folder


def test_a_file_is_written_whole_and_for_its_owner_alone(root: Path) -> None:
    assert write_whole(root, "images/a.png", b"one") == root / "images" / "a.png"
    write_whole(root, "images/a.png", b"two", sync=False)
    assert (root / "images" / "a.png").read_bytes() == b"two"
    assert stat.S_IMODE((root / "images" / "a.png").stat().st_mode) == 0o600
    assert [path.name for path in (root / "images").iterdir()] == ["a.png"]


def test_what_breaks_off_leaves_the_old_file_and_no_other(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(root, "a", b"old")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(root, "a", b"new")
    assert (root / "a").read_bytes() == b"old"
    assert {path.name for path in root.iterdir()} == {"a", "images"}


def test_what_is_appended_is_appended_whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(root, "rows", b"1\n")
    append(root, "rows", b"2\n")
    write, calls = os.write, []

    def full(file: int, content: bytes) -> int:
        calls.append(content)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "no space")
        return write(file, content[:1])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="no space"):
        append(root, "rows", b"3\n")
    assert (root / "rows").read_bytes() == b"1\n2\n"


def test_a_link_in_the_file_s_place_is_replaced_and_not_followed(root: Path, outside: Path) -> None:
    (root / "a").symlink_to(outside)
    write_whole(root, "a", b"new")
    assert outside.read_bytes() == b"kept"
    assert not (root / "a").is_symlink()


def test_nothing_is_appended_through_a_link(root: Path, outside: Path) -> None:
    (root / "a").symlink_to(outside)
    with pytest.raises(OSError, match="symbolic links"):
        append(root, "a", b"new")
    assert outside.read_bytes() == b"kept"


@pytest.mark.parametrize("write", [write_whole, append])
def test_nothing_is_written_into_a_folder_that_is_a_link(root: Path, outside: Path, write: Write) -> None:
    (root / "images").rmdir()
    (root / "images").symlink_to(outside.parent)
    with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
        write(root, "images/precious", b"new")
    assert outside.read_bytes() == b"kept"


def test_the_folder_itself_may_be_reached_through_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    write_whole(tmp_path / "link", "images/a", b"new")
    assert (root / "images" / "a").read_bytes() == b"new"


def test_a_pipe_is_refused_and_not_waited_for(root: Path) -> None:
    os.mkfifo(root / "pipe")
    with pytest.raises(OSError, match="No such device"):
        open_path(root / "pipe", os.O_WRONLY)
    with pytest.raises(OSError, match="no ordinary file"):
        open_path(root / "pipe", os.O_RDWR)


def test_a_lock_that_is_a_link_is_refused_in_one_line(root: Path, outside: Path) -> None:
    (root / "run.lock").symlink_to(outside)
    with pytest.raises(ScenarioError, match="no link") as raised, Lock(root / "run.lock", "busy"):
        pass
    assert "\n" not in str(raised.value)
    assert outside.read_bytes() == b"kept"


def test_nothing_is_listed_made_or_removed_through_a_link(root: Path, outside: Path) -> None:
    assert (names(root), names(root, "images"), names(root, "nowhere")) == (["images"], [], [])
    make_folder(root, "again")
    make_folder(root, "again")
    assert stat.S_IMODE((root / "again").stat().st_mode) == 0o700
    (root / "link").symlink_to(outside.parent)
    for refused in (
        lambda: names(root, "link"),
        lambda: make_folder(root, "link"),
        lambda: make_folder(root, "link/more"),
        lambda: remove(root, "link/precious"),
        lambda: remove_folder(root, "link"),
        lambda: remove(root, "again"),
    ):
        with pytest.raises(OSError):  # noqa: PT011 (by system, ELOOP, ENOTDIR or EISDIR)
            refused()
    assert outside.read_bytes() == b"kept"
    remove(root, "link")
    remove(root, "link")
    remove_folder(root, "again")
    assert names(root) == ["images"]
    assert outside.read_bytes() == b"kept"
