"""The engines by name."""

from __future__ import annotations

from fedleak.engines.base import Engine
from fedleak.errors import ScenarioError


def engine(name: str) -> Engine:
    """Return the engine called ``name``.

    Raises
    ------
    ScenarioError
        If this version has no such engine.
    """
    if name == "inprocess":
        from fedleak.engines.inprocess import InProcess

        return InProcess()
    if name == "ray":
        from fedleak.engines.ray import Ray

        return Ray()
    raise ScenarioError(f"federation.engine: '{name}' does not run from here; use 'inprocess' or 'ray'")
