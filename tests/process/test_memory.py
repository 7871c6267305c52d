"""The memory that a process may have is the least of what the machine and its control groups say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedleak.process import memory


def test_this_machine_tells_its_memory():
    if not hasattr(os, "sysconf"):
        pytest.skip("this system has no sysconf")
    found = memory.machine_memory()
    assert found is not None
    assert 2**27 < found <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("line", "name", "root"), [("0::/a/b", "memory.max", ""), ("4:cpu,memory:/a/b", "memory.limit_in_bytes", "memory")]
)
def test_the_group_and_those_above_it_limit(tmp_path: Path, line, name, root):
    own, groups = tmp_path / "cgroup", tmp_path / root
    (groups / "a" / "b").mkdir(parents=True)
    own.write_text(f"9:pids:/elsewhere\n{line}\n")
    assert memory._granted(tmp_path, own) == []
    (groups / "a" / "b" / name).write_text("4000\n")
    (groups / "a" / name).write_text("3000\n")
    (groups / name).write_text("max\n" if name == "memory.max" else "9223372036854771712\n")
    assert sorted(memory._granted(tmp_path, own)) == [3000, 4000]
    (groups / name).write_text("2000\n")  # a container sees its own group at the root, under a path that is the host's
    own.write_text(line.replace("/a/b", "/host/x") + "\n")
    assert memory._granted(tmp_path, own) == [2000]


def test_a_system_without_groups_tells_nothing_of_them(tmp_path: Path):
    assert memory._granted(tmp_path, tmp_path / "missing") == []


def test_sizes_are_said_in_words():
    assert [memory.said_bytes(n) for n in (1500, 2.5e6, 25.3e9, 6e12, 3.5e15, 2e19)] == [
        "1.5 kB",
        "2.5 MB",
        "25.3 GB",
        "6.0 TB",
        "3.5 PB",
        "20.0 EB",
    ]
