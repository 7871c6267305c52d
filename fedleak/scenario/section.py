"""What tables of a scenario are made of: frozen sections, and plugins by name with their parameters beside it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fedleak.scenario.ranges import LONGEST_NAME


class Section(BaseModel):
    """A table of the scenario: frozen, unknown keys refused, as are NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Named(BaseModel):
    """A plugin by name, with its own parameters beside the name."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    name: str = Field(max_length=LONGEST_NAME)

    @property
    def parameters(self) -> dict[str, Any]:
        """The keys beside ``name`` and the other keys that fedleak defines."""
        return dict(self.model_extra or {})


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


NameOrTable = Annotated[Named, BeforeValidator(_named)]


def table_of(named: Named | None) -> dict[str, Any] | None:
    """Return the name and the parameters as one plain table, or ``None`` as it is."""
    return None if named is None else named.model_dump(mode="json")
