"""What the commands share: where they write, the options they have in common, and how they end when interrupted."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.markup import escape
from rich.segment import Segment

from fedleak.printable import printable, quiet_log


class Ending(SystemExit):
    """The end of a command, by the command itself; any other ``SystemExit`` is by code that it was given."""


class _Printable(RenderHook):
    """Keep control characters that others wrote from the terminal: rich passes escape sequences on as they are."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Wrap what is about to be printed."""
        return [_Cleaned(renderable) for renderable in renderables]


class _Cleaned:
    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """End as commands do whose reader has seen enough, such as ``head``."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Ending(1)


def safe_console(**options: Any) -> Console:
    """Return a console that prints no control character but rich's own."""
    made = _Console(**options)
    made.push_render_hook(_Printable())
    return made


console = safe_console()
errors = safe_console(stderr=True)

ScenarioFile = Annotated[Path, typer.Argument(show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as --set federation.rounds=5 (repeatable)."),
]
Device = Annotated[str, typer.Option(help="Where attacks compute: auto (CUDA if there is any), cpu, cuda, cuda:1 ...")]
Threads = Annotated[
    int, typer.Option(min=1, help="Threads for the attacks; with 1, numbers do not depend on the machine's cores.")
]
AllowCode = Annotated[
    bool, typer.Option("--allow-code", help="Import what the folder names as package.module:name, which runs it.")
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
    raise Ending(130)


@contextmanager
def importing() -> Iterator[None]:
    """Import what a command needs, torch above all, without Python's collector.

    It would go through the hundred thousands of objects of which none is garbage, again and again while they become more
    (an eighth of the time that torch takes). They are set apart for good, so that later collections pass over them too.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def quieten(verbose: bool) -> None:
    """Keep Flower's log out of the way, unless asked for."""
    quiet_log(logging.INFO if verbose else logging.ERROR)
