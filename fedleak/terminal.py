"""What the commands share: where they write, the options they have in common, and how they end when interrupted."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

console = Console()
errors = Console(stderr=True)

ScenarioFile = Annotated[Path, typer.Argument(show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as --set federation.rounds=5 (repeatable)."),
]
Device = Annotated[str, typer.Option(help="Where attacks compute: auto (CUDA if there is any), cpu, cuda, cuda:1 ...")]
Threads = Annotated[
    int, typer.Option(min=1, help="Threads for the attacks; with 1, numbers do not depend on the machine's cores.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show Flower's own log as well.")]


def interrupted(place: list[Path], command: str) -> NoReturn:
    """End with exit code 130; say where what is done is kept, and which command goes on there."""
    if place:
        folder = escape(str(place[0]))
        on = f"; go on with: fedleak {command} --resume {folder}" if command in ("run", "deploy submit") else ""
        on = f"; go on with: fedleak {escape(command)}" if command.startswith(("attack ", "claim ", "sweep ")) else on
        errors.print(f"Interrupted. What is done is kept in {folder}{on}", highlight=False, soft_wrap=True)
    sys.exit(130)


def quieten(verbose: bool) -> None:
    """Keep Flower's log out of the way, unless asked for."""
    import flwr.app  # noqa: F401 (its import sets the level, so it must come first)

    logging.getLogger("flwr").setLevel(logging.INFO if verbose else logging.ERROR)
