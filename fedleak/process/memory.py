"""How much memory this process may ever have: what the machine holds, or less where a container is granted less."""

from __future__ import annotations

import os
from pathlib import Path

_NO_LIMIT = 2**60  # what version 1 of the kernel's control groups says in place of "no limit" lies above it
_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def machine_memory() -> int | None:
    """Return the bytes of memory that there are for this process, without swap; ``None`` where the system does not tell."""
    limits = [_physical(), *_granted(_GROUPS, _OWN)]
    return min((limit for limit in limits if limit is not None), default=None)


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None


def _granted(groups: Path, own: Path) -> list[int]:
    """Return the limits of this process's control group and of those above it, of either version."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        if controllers == "":
            root, name = groups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path is the host's; its own group lies at the root.
        inner = Path(place.strip("/"))
        for folder in (inner, *inner.parents):
            limit = _read(root / folder / name)
            if limit is not None:
                found.append(limit)
    return found


def _read(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
        limit = int(text)
    except (OSError, ValueError):  # "max", or no such group
        return None
    return limit if 0 < limit < _NO_LIMIT else None


def said_bytes(count: float) -> str:
    """Return a size in words: ``"1.5 GB"``."""
    for factor, unit in ((1e18, "EB"), (1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"
