"""The parameters of a plugin or of a scenario's table, as lines of text."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from fedleak.scenario.validation import expectation


def rows_of(*configs: type[BaseModel]) -> list[str]:
    """Return a line for each field: its name, its default, and what it is and is expected to be; in aligned columns."""
    rows = []
    for name, field in ((name, field) for config in configs for name, field in config.model_fields.items()):
        default = "required" if field.is_required() else _default(field.default)
        rows.append((name, default, "; ".join(text for text in (field.description, expectation(field)) if text)))
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    return [f"  {name:<{widths[0]}}  {default:<{widths[1]}}  {what}".rstrip() for name, default, what in rows]


def _default(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, BaseModel):
        return str(getattr(value, "name", "-"))
    if isinstance(value, tuple):
        return str([_default(one) if isinstance(one, BaseModel) else one for one in value])
    return str(value)
