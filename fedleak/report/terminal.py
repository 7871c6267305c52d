"""The leakage of a run as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fedleak.report.formats import count, decimals, duration, enumerated, percent
from fedleak.report.records import baseline_psnr, table


def leakage_table(leakage: list[dict[str, Any]]) -> Table:
    """Return the ``leakage`` list of a summary as a table that fits 80 columns.

    Parameters
    ----------
    leakage : list of dict
        As :func:`fedleak.evaluation.summary.summarise` returns it.

    Returns
    -------
    Table
        One row an entry: PSNR and both baselines in dB, accuracy and identification in percent, CPU seconds in all.
    """
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    grid.add_column("Attack\ndefenses", overflow="fold", min_width=12)
    headings = ("Imgs", "PSNR dB\n[min..max]", "Mean im.\nrandom", "SSIM", "Labels", "Ident.", "CPU s")
    for heading in headings:
        grid.add_column(heading, justify="right", no_wrap=True)
    for row in leakage:
        psnr = table(row, "psnr")
        # Text, not strings: names may hold brackets, which rich would read as markup.
        name = Text(str(row.get("attack")), style="bold")
        name.append("\n" + enumerated(row.get("defenses")), style="dim not bold")
        if row.get("failures"):
            name.append(f"\n{count(row['failures'])} failed", style="red not bold")
        spread = Text(decimals(psnr.get("median")), style="bold")
        spread.append(f"\n[{decimals(psnr.get('min'))}..{decimals(psnr.get('max'))}]", style="dim not bold")
        grid.add_row(
            name,
            count(row.get("images")),
            spread,
            f"{decimals(baseline_psnr(row, 'mean_image'))}\n{decimals(baseline_psnr(row, 'random'))}",
            decimals(table(row, "ssim").get("mean"), 2),
            percent(row.get("label_accuracy")),
            percent(row.get("identification")),
            duration(row.get("cpu_seconds")),
        )
    return grid
