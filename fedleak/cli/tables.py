"""The leakage of a run, and the identifiability count of a scenario, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fedleak.attacks.exact.count import LayerCount
from fedleak.modalities.base import Measure
from fedleak.modalities.find import measure_of
from fedleak.report.formats import count, decimals, duration, enumerated, figure, percent, size
from fedleak.runs.records import table

if TYPE_CHECKING:
    from fedleak.experiment.claims import Finding
    from fedleak.report.faults import Fault


def leakage_table(leakage: list[dict[str, Any]]) -> Group:
    """Return the ``leakage`` list of a summary as a table that fits 80 columns, with a line that reads it.

    Parameters
    ----------
    leakage : list of dict
        As :func:`fedleak.evaluation.summary.summarise` returns it.

    Returns
    -------
    Group
        One row an entry: the measure's figures, labels and identification in percent, CPU seconds in all. Below the rows
        that were attacked under the same defenses stand the guesses that saw no update.
    """
    grid = _grid()
    measure = measure_of(leakage)
    grid.add_column("", overflow="fold", min_width=25 - len(measure.nouns) if len(measure.nouns) <= 6 else 15)
    headline, beside = measure.headline, [one for one in measure.beside if not one.optional]
    spread = (f"{headline.with_unit(headline.label)}\nmedian", "\nmin", "\nmax")
    for heading in (measure.nouns, *spread, *(one.label for one in beside), "labels", "found", "CPU s"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for number, row in enumerate(leakage):
        metrics = table(row, "metrics")
        found = table(metrics, headline.name)
        # Text, not strings: names may hold brackets, which rich would read as markup.
        name = Text(str(row.get("attack")), style="bold")
        if row.get("defenses"):
            name.append("\nagainst " + enumerated(row.get("defenses")), style="dim not bold")
        if row.get("failures"):
            name.append(f"\nfailed on {count(row['failures'])}", style="red not bold")
        grid.add_row(
            name,
            count(row.get("examples")),
            Text(figure(found.get("median"), headline.rough), style="bold"),
            *(figure(found.get(end), headline.rough) for end in ("min", "max")),
            *(figure(table(metrics, one.name).get("mean"), one.rough) for one in beside),
            percent(row.get("label_accuracy")),
            percent(row.get("identification")),
            duration(row.get("cpu_seconds")),
        )
        following = leakage[number + 1] if number + 1 < len(leakage) else {}
        if _guesses(measure, row) != _guesses(measure, following):
            for baseline, value in zip(measure.baselines, _guesses(measure, row), strict=True):
                grid.add_row(Text(f"guess: {baseline.label}", style="dim"), "", Text(value, style="dim"))
    legend = f"found: of its client's shard, the true {measure.noun} is nearest. Guesses saw no update."
    return Group(grid, Text(legend, style="dim"))


def cost_line(summary: dict[str, Any]) -> str:
    """Return in one line what a run cost its server, from ``summary.json``; empty where nothing was measured."""
    found = table(summary, "resources")
    seconds, attacks = (table(found, key).get("median") for key in ("seconds", "attack_seconds"))
    peak = table(found, "memory").get("peak")
    parts = [] if seconds is None else [f"{duration(seconds)} s a round"]
    parts += [f"{duration(attacks)} s more for its attacks"] if attacks else []
    parts += [] if peak is None else [f"{size(peak)} of memory at most"]
    return ", ".join(parts)


def faults_table(found: Sequence[Fault], most: int = 12) -> Group:
    """Return what went wrong in a run, one line each, at most so many."""
    grid = _grid()
    for heading in ("round", "client"):
        grid.add_column(heading, overflow="fold")
    for heading in ("what happened", "what the run did"):
        grid.add_column(heading, overflow="fold", ratio=1)
    for fault in found[:most]:
        grid.add_row(fault.when, fault.who, Text(fault.what), Text(fault.did, style="dim"))
    left = len(found) - most
    return Group(grid, *([Text(f"and {left} more, in the report", style="dim")] if left > 0 else []))


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return what a claim's cases gave against what was expected, as a table."""
    grid = _grid()
    for heading in ("case", "figure", "published", "expected"):
        grid.add_column(heading, overflow="fold")
    for heading in ("earlier", "found", ""):
        grid.add_column(heading, justify="right", no_wrap=True)
    for number, finding in enumerate(findings):
        again = number > 0 and findings[number - 1].case == finding.case
        verdict = Text("holds", style="green") if finding.holds else Text("does not hold", style="red")
        grid.add_row(
            Text("" if again else finding.case, style="bold"),
            Text(finding.what),
            Text(finding.published),
            finding.range,
            decimals(finding.earlier, 2),
            decimals(finding.value, 2),
            verdict,
        )
    return grid


def counts_table(counts: Sequence[LayerCount]) -> Table:
    """Return the identifiability count, as :func:`fedleak.attacks.exact.count.count` gives it, as a table."""
    grid = _grid()
    grid.add_column("layer")
    grid.add_column("kind")
    for heading in ("equations", "unknowns", "to spare"):
        grid.add_column(heading, justify="right")
    for layer in counts:
        share = layer.slack / layer.unknowns
        style = "red" if share < 0 else ""
        spare = Text(f"{share:+,.0%}" if share < 10 else f"{share + 1:,.0f}-fold", style=style)
        whole = layer.kind == "whole"
        name = "the whole update" if whole else layer.layer
        grid.add_row(Text(name), "" if whole else layer.kind, f"{layer.equations:,}", f"{layer.unknowns:,}", spare)
    return grid


def _grid() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))


def _guesses(measure: Measure, row: dict[str, Any]) -> list[str]:
    return [figure(measure.guess(row, baseline.name), measure.headline.rough) for baseline in measure.baselines]
