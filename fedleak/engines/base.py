"""What every engine is: a place where a federation runs; it hands the server a Grid to its clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from flwr.serverapp import Grid

from fedleak.scenario.schema import Scenario
from fedleak.wire.directory import Directory

Serve = Callable[[Grid, Directory], None]


class Engine(Protocol):
    """Runs the clients of a scenario."""

    def run(self, scenario: Scenario, serve: Serve) -> None:
        """Start the clients, call ``serve`` with a grid that reaches them and a directory of them, and stop them.

        Whatever ``serve`` raises is raised again here, after the clients are stopped.
        """
