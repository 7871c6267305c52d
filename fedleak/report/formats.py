"""Numbers and names as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from fedleak.runs.records import number

NONE = "–"


def decimals(value: Any, places: int = 1) -> str:
    """Return ``value`` with ``places`` decimals, ``∞`` if infinite, and a dash if it is no number."""
    found = number(value)
    if found is None:
        return NONE
    if math.isinf(found):
        return "∞" if found > 0 else "−∞"
    return f"{found:.{places}f}".replace("-", "−")


def scientific(value: Any) -> str:
    """Return ``value`` with two significant digits, such as ``1.0e-04``."""
    found = number(value)
    return NONE if found is None else f"{found:.1e}"


def figure(value: Any, places: int | None) -> str:
    """Return a measure's figure with its ``places``, of which ``None`` is two significant digits."""
    return scientific(value) if places is None else decimals(value, places)


def percent(value: Any) -> str:
    """Return a share in [0, 1] as a percentage."""
    found = number(value)
    return NONE if found is None else f"{100 * found:.0f} %"


def count(value: Any) -> str:
    """Return a whole number with thousands apart."""
    found = number(value)
    return NONE if found is None else f"{found:,.0f}"


def size(value: Any) -> str:
    """Return bytes in B, kB, MB or GB of a thousand each."""
    found = number(value)
    if found is None or math.isinf(found):
        return NONE
    units = ("B", "kB", "MB", "GB")
    power = min(len(units) - 1, max(0, int(math.log10(found) // 3))) if found >= 1 else 0
    shown = found / 1000**power
    return f"{shown:.0f} {units[power]}" if power == 0 or shown >= 100 else f"{shown:.1f} {units[power]}"


def duration(value: Any) -> str:
    """Return seconds with as many digits as matter."""
    found = number(value)
    if found is None or math.isinf(found):
        return NONE
    return f"{found:.2f}" if found < 1 else f"{found:.1f}" if found < 100 else f"{found:,.0f}"


def plain(value: Any) -> str:
    """Return any scenario value as one would write it in the file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "none"
    return NONE if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def yes_no(value: Any) -> str:
    """Return ``yes``, ``no``, or a dash if it is not known."""
    return {True: "yes", False: "no"}.get(value, NONE) if isinstance(value, bool) else NONE


def class_name(label: Any, names: Sequence[Any]) -> str | None:
    """Return the name of class ``label``; its number if it has no name, ``None`` if there is no label."""
    if isinstance(label, bool) or not isinstance(label, int):
        return None
    return str(names[label]) if 0 <= label < len(names) else f"class {label}"


def moment(value: Any) -> str:
    """Return an ISO time as a date and a time; as it stands if it is none."""
    try:
        when = datetime.fromisoformat(str(value))
    except ValueError:
        return str(value or NONE)
    zone = when.strftime(" %Z") if when.tzinfo else ""
    return f"{when.day} {when.strftime('%B %Y, %H:%M')}{zone}"


def enumerated(value: Any) -> str:
    """Return names joined with commas, or ``none``."""
    return ", ".join(str(item) for item in value) if isinstance(value, list | tuple) and value else "none"
