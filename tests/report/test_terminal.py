"""The table at the end of a run reads well at 80 columns."""

from __future__ import annotations

import io

from rich.console import Console

from fedleak.evaluation.summary import summarise
from fedleak.report.terminal import leakage_table


def printed(leakage):
    text = io.StringIO()
    Console(file=text, width=80, color_system=None).print(leakage_table(leakage))
    return text.getvalue()


def test_all_numbers_stand_unclipped_at_80_columns(tmp_path, lines):
    rows = [
        lines.image(tmp_path, 1, client, "inverting-gradients", psnr, cpu_seconds=1234.0)
        for client, psnr in ((0, 200.0), (1, 100.0))
    ]
    rows += [lines.failed(1, 2, "inverting-gradients", "why")]
    text = printed(summarise(rows))
    words = text.split()
    for expected in ("inverting-gradients", "2", "150.0", "[100.0..200.0]", "13.0", "8.0", "0.90", "100", "2,468"):
        assert expected in words, text
    assert "1 failed" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_names_are_not_read_as_markup(tmp_path, lines):
    rows = [lines.image(tmp_path, 1, 0, "[red]x[/red]", 40.0, defenses=["[bold]d"])]
    text = printed(summarise(rows))
    assert "[red]x[/red]" in text
    assert "[bold]d" in text


def test_what_was_not_measured_is_a_dash(lines):
    text = printed(summarise([lines.failed(1, 0, "dlg", "why")]))
    assert "[–..–]" in text
