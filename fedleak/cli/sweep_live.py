"""The terminal during a sweep: cells done and running, and the time that is left; and the verdicts after it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fedleak.modalities.find import measure_of
from fedleak.printable import span
from fedleak.report.formats import decimals, percent
from fedleak.runs.folder import Row
from fedleak.sweeps.found import Found
from fedleak.sweeps.verdicts import Verdict

_COLOURS = {"leaks": "red", "degrades": "yellow", "blocks": "green", "inconclusive": "dim"}


class LiveSweep:
    """Show what happens to the cells of a sweep; plain lines where the output is no terminal.

    Parameters
    ----------
    console : Console
        Where to show it.
    quiet : bool
        Show nothing.
    """

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._all: TaskID | None = None
        self._running: dict[str, TaskID] = {}
        self._total = self._finished = self._now = 0
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bars off the screen."""
        self._bars.stop()

    def begin(self, total: int, finished: int, workers: int | None) -> None:
        """Show how many cells there are, how many are finished already, and how many run at a time."""
        self._total, self._finished, self._started = total, finished, time.monotonic()
        if self._quiet:
            return
        kept = f", {finished} finished already" if finished else ""
        where = f"{workers} at a time" if workers else "on Ray"
        self._console.print(f"{total} runs{kept}" + (f"; {where}" if finished < total else ""), highlight=False)
        self._all = self._bars.add_task("sweep", total=total, completed=finished, detail=self._left())

    def at(self, name: str, what: str) -> None:
        """Show how far a cell is."""
        if name not in self._running:
            self._running[name] = self._bars.add_task(f"  {escape(name)}", total=None, detail="")
        self._bars.update(self._running[name], detail=escape(what))

    def done(self, name: str, error: str | None, rows: Sequence[Row]) -> None:
        """Show a cell's result, or why there is none."""
        if (task := self._running.pop(name, None)) is not None:
            self._bars.remove_task(task)
        self._now += 1
        if self._quiet:
            return
        if self._all is not None:
            self._bars.update(self._all, completed=self._finished + self._now, detail=self._left())
        head = f"[dim]{self._finished + self._now}/{self._total}  {escape(name)}[/dim]"
        if error:
            self._console.print(f"{head}  [red]failed: {escape(error)}[/red]", highlight=False, soft_wrap=True)
        else:
            self._console.print(f"{head}  {escape(_figures(rows))}", highlight=False, soft_wrap=True)

    def _left(self) -> str:
        done = self._finished + self._now
        text = f"{done} of {self._total} runs"
        if not self._now:
            return text
        seconds = (time.monotonic() - self._started) / self._now * (self._total - done)
        return f"{text}, about {span(seconds)} left"


def verdict_table(judged: Sequence[Verdict]) -> Table:
    """Return the verdicts of a sweep as a table for the terminal."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    several = len({verdict.setting for verdict in judged}) > 1
    measured = any(verdict.accuracy is not None for verdict in judged)
    grid.add_column("defense", overflow="fold", min_width=12 if several else 16)
    if several:
        grid.add_column("setting", overflow="fold", min_width=10)
    grid.add_column("verdict", no_wrap=True)
    grid.add_column("best attack", overflow="fold", min_width=11 if several else 19)
    units = dict.fromkeys(verdict.best.measure.headline.unit for verdict in judged if verdict.best)
    for heading in (" ".join(["gain", *filter(None, units)]), "95 %", "found", *(["acc."] if measured else [])):
        grid.add_column(heading, justify="right", no_wrap=True)
    for verdict in judged:
        best = verdict.best
        figures = [
            decimals(best.gain.mean) if best else "",
            f"{decimals(best.gain.low)} to {decimals(best.gain.high)}" if best else "",
            percent(best.identified.mean) if best and best.identified else "",
            *([percent(verdict.accuracy)] if measured else []),
        ]
        name = Text("no defense" if verdict.control else verdict.defense, style="dim" if verdict.control else "bold")
        setting: list[Any] = [Text(verdict.setting)] if several else []
        word = Text(verdict.word, style=_COLOURS[verdict.word])
        grid.add_row(name, *setting, word, Text(best.attack if best else "-"), *figures)
    return grid


def measured_lines(judged: Sequence[Verdict]) -> list[str]:
    """Return a sentence for each defense of which canaries or membership tests found anything."""
    lines = []
    for verdict in judged:
        said = []
        if verdict.empirical:
            value, low, high = (f"{one:,.1f}" if one < 100 else f"{one:,.0f}" for one in verdict.empirical)
            bound = "no bound" if verdict.epsilon is None else f"at most {verdict.epsilon:,.1f}"
            said.append(f"epsilon {bound} by the accountant, {value} ({low} to {high}) by canaries")
        if verdict.membership is not None:
            said.append(f"membership AUC {verdict.membership:.2f}")
        if said:
            setting = f", {verdict.setting}" if len({one.setting for one in judged}) > 1 else ""
            lines.append(f"{'no defense' if verdict.control else verdict.defense}{setting}: {'; '.join(said)}")
    return lines


def found_table(found: Found) -> Table:
    """Return what a sweep's file says that its run found: mean PSNR in dB by attack, accuracy, verdict and note."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    accuracy, judged, noted = (any(getattr(line, key) for line in found.lines) for key in ("accuracy", "verdict", "note"))
    grid.add_column("defense", overflow="fold", min_width=16)
    for heading in (*found.attacks, *(["accuracy %"] if accuracy else [])):
        grid.add_column(heading, justify="right")
    for heading in (*(["verdict"] if judged else []), *(["note"] if noted else [])):
        grid.add_column(heading)
    for line in found.lines:
        cells: list[Any] = [decimals(line.psnr[attack]) if attack in line.psnr else "-" for attack in found.attacks]
        cells += [", ".join(decimals(share) for share in line.accuracy)] if accuracy else []
        cells += [Text(line.verdict or "", style=_COLOURS[line.verdict] if line.verdict else "")] if judged else []
        grid.add_row(Text(line.defense, style="bold"), *cells, *([Text(line.note)] if noted else []))
    return grid


def _figures(rows: Sequence[Row]) -> str:
    attacked = [row for row in rows if row.get("attack") and row.get("gain") is not None]
    shown = [f"{row['attack']} {measure_of([row]).headline.with_unit(decimals(row['gain']))}" for row in attacked]
    failed = sum(row.get("client_errors") or 0 for row in rows[:1])
    text = ", ".join(shown) or "nothing rebuilt"
    return text + (f"; {failed} client reply(s) failed" if failed else "")
