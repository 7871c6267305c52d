"""The terminal during a run: rounds and attacks moving, failures as they happen."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from fedleak.events import Event
from fedleak.modalities.find import measure_of
from fedleak.printable import span
from fedleak.report.formats import figure

_MOST_FAILURES = 10  # lines that a round prints of clients that failed
_FEW = 2  # iterations after which an attack's pace is told
_LONG = 20.0  # CPU seconds from which it is told without a bar too


class Live:
    """Listen to a run and show it; plain lines where the output is no terminal.

    Parameters
    ----------
    console : Console
        Where to show it.
    quiet : bool
        Show nothing.
    """

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
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
        self._rounds: TaskID | None = None
        self._attack: TaskID | None = None
        self._orders: TaskID | None = None
        self._told: set[tuple[str, int]] = set()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bars off the screen."""
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        handler = getattr(self, f"_on_{event.kind.replace('-', '_')}", None)
        if handler is not None and not self._quiet:
            handler(event)

    def _on_round(self, event: Event) -> None:
        number, total = event.facts["round"], event.facts["rounds"]
        if self._rounds is None:
            self._rounds = self._bars.add_task("rounds", total=total, detail="")
        self._bars.update(self._rounds, completed=number - 1, description=f"round {number} of {total}", detail="clients training")

    def _on_attack(self, event: Event) -> None:
        facts = event.facts
        self._close_attack()
        detail = f"update {facts['number']} of {facts['total']}"
        self._attack = self._bars.add_task(f"  {escape(facts['attack'])}", total=None, detail=detail)
        if self._rounds is not None:
            self._bars.update(self._rounds, detail="attacking")

    def _on_progress(self, event: Event) -> None:
        if self._attack is not None:
            facts = event.facts
            left = facts.get("seconds_left")
            detail = f"client {facts['client']}, iteration {facts['iteration']}, loss {facts['loss']:.2e}"
            if left is not None and facts["iteration"] >= _FEW:
                detail += f", at most {span(left)} left"
                self._say_how_long(facts, left)
            self._bars.update(self._attack, completed=facts["iteration"], total=facts["iterations"], detail=detail)

    def _say_how_long(self, facts: dict[str, Any], left: float) -> None:
        """Print once for each attack how long it will take, where it is long and no bar shows it."""
        if self._console.is_terminal or left < _LONG:
            return
        if (update := (facts["attack"], facts["round"])) not in self._told:
            self._told.add(update)
            text = f"round {facts['round']}  {facts['attack']}  at most {span(left)} of CPU time to go"
            self._console.print(f"[dim]{escape(text)}[/dim]", highlight=False)

    def _on_graded(self, event: Event) -> None:
        self._close_attack()
        facts = event.facts
        measure = measure_of(facts["rows"])
        shown = [value for row in facts["rows"] if (value := measure.value(row)) is not None]
        cohort = facts["rows"][0].get("cohort") if facts["rows"] else None
        whose = f"clients {', '.join(map(str, cohort))}" if cohort else f"client {facts['client']}"
        where = f"round {facts['round']}  {whose}  {facts['attack']}"
        if shown:
            headline = measure.headline
            figures = ", ".join(headline.with_unit(figure(value, headline.rough)) for value in shown[:8])
            more, seconds = " ..." if len(shown) > 8 else "", facts["rows"][0]["cpu_seconds"]
            self._console.print(f"[dim]{escape(where)}[/dim]  {figures}{more}  [dim]{seconds:.1f} CPU s[/dim]", highlight=False)
        else:
            self._console.print(
                f"[dim]{escape(where)}[/dim]  [yellow]{escape(str(facts['rows'][0]['error']))}[/yellow]", highlight=False
            )

    def _on_orders(self, event: Event) -> None:
        done, total, running = (event.facts[key] for key in ("done", "total", "running"))
        if self._orders is None:
            self._orders = self._bars.add_task("reconstructions", total=total, detail="")
        detail = f"{done} of {total} done, {running} handed out"
        self._bars.update(self._orders, completed=done, total=total, detail=detail)

    def _on_problem(self, event: Event) -> None:
        facts = event.facts
        text = f"round {facts['round']}  {facts['attack']}  could not be shown the round: {facts['error']}"
        self._console.print(f"[yellow]{escape(text)}[/yellow]", highlight=False)

    def _on_note(self, event: Event) -> None:
        self._console.print(f"[yellow]{escape(event.facts['text'])}[/yellow]", highlight=False, soft_wrap=True)

    def _on_round_done(self, event: Event) -> None:
        facts = event.facts
        failures = facts.get("failures", [])
        for failure in failures[:_MOST_FAILURES]:
            text = f"round {facts['round']}  client {failure['client']} failed: {failure['reason']}"
            self._console.print(f"[red]{escape(text)}[/red]", highlight=False)
        if len(failures) > _MOST_FAILURES:
            more = f"round {facts['round']}  and {len(failures) - _MOST_FAILURES:,} more clients failed; the report names them"
            self._console.print(f"[red]{more}[/red]", highlight=False)
        if unchanged := facts.get("undefended"):
            whose = ", ".join(map(str, unchanged[:8])) + (" ..." if len(unchanged) > 8 else "")
            text = f"round {facts['round']}  the defenses left the updates as they were: sent undefended by client {whose}"
            self._console.print(f"[yellow]{escape(text)}[/yellow]", highlight=False, soft_wrap=True)
        if facts["accuracy"] is not None:
            text = f"round {facts['round']}  test accuracy {facts['accuracy']:.1%}"
            self._console.print(f"[dim]{text}[/dim]", highlight=False)
        if self._rounds is not None:
            self._bars.update(self._rounds, completed=facts["round"])

    def _close_attack(self) -> None:
        if self._attack is not None:
            self._bars.remove_task(self._attack)
            self._attack = None
