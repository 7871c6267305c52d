"""The table at the end of a run reads well at 80 columns."""

from __future__ import annotations

import io

from rich.console import Console

from fedleak.attacks.exact.count import LayerCount
from fedleak.cli.tables import counts_table, leakage_table
from fedleak.evaluation.summary import summarise


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
    for expected in ("inverting-gradients", "2", "150.0", "100.0", "200.0", "13.0", "8.0", "0.90", "100", "2,468"):
        assert expected in words, text
    assert "failed on 1" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_names_are_not_read_as_markup(tmp_path, lines):
    rows = [lines.image(tmp_path, 1, 0, "[red]x[/red]", 40.0, defenses=["[bold]d"])]
    text = printed(summarise(rows))
    assert "[red]x[/red]" in text
    assert "[bold]d" in text


def test_what_was_not_measured_is_a_dash(lines):
    text = printed(summarise([lines.failed(1, 0, "dlg", "why")]))
    assert text.split("dlg")[1].split()[:4] == ["0", "–", "–", "–"]


def test_guesses_stand_once_below_the_rows_that_they_belong_to(tmp_path, lines):
    baseline = {"random": {"psnr": 5.0}, "mean_image": {"psnr": 11.0}}
    rows = [lines.image(tmp_path, 1, 0, attack, 40.0) for attack in ("dlg", "idlg")]
    rows += [lines.image(tmp_path, 1, 0, "other", 40.0, baseline=baseline)]
    names = [line.split("  ")[0].strip() for line in printed(summarise(rows)).splitlines()[3:-1]]
    guesses = ["guess: mean image", "guess: random noise"]
    assert names == ["dlg", "idlg", *guesses, "other", *guesses]


def test_a_count_that_falls_short_is_negative_and_a_large_one_is_a_multiple():
    text = io.StringIO()
    counts = [LayerCount("conv2", "Conv2d", 100, 54), LayerCount("(model)", "whole", 10, 1_000)]
    Console(file=text, width=80, color_system=None).print(counts_table(counts))
    rows = [line.split() for line in text.getvalue().splitlines()]
    assert ["conv2", "Conv2d", "54", "100", "-46%"] in rows
    assert ["the", "whole", "update", "1,000", "10", "100-fold"] in rows
