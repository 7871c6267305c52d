"""Charts draw the numbers they are given, in the page's colours."""

from __future__ import annotations

import re

import pytest
from matplotlib import rcParams

from fedleak.report import figures
from fedleak.report.gallery import Gallery
from fedleak.runs.records import read_records


def chart(folder):
    return figures.rounds_chart(Gallery(read_records(folder)), [])


def marks(svg, colour):
    return [float(y) for y in re.findall(rf'<use href="#[^"]+" x="[^"]+" y="([^"]+)" style="fill: var\(--{colour}\)', svg)]


def test_one_mark_an_image_higher_for_higher_psnr(make_run):
    svg = chart(make_run())
    first, second = marks(svg, "series-0"), marks(svg, "series-1")
    assert (len(first), len(second)) == (4, 2)
    # SVG's y grows downwards; dlg has 41 to 42 dB, analytic 12 dB.
    assert max(first) < min(second)


def test_of_very_many_images_some_are_marked_evenly_by_rank(make_run, lines, monkeypatch):
    monkeypatch.setattr(figures, "MOST_MARKS", 5)

    def rows(folder):
        return [lines.image(folder, 1, 0, "dlg", 20.0 + image, example=image) for image in range(41)]

    gallery = Gallery(read_records(make_run(rows)))
    assert figures.marks(gallery) == 5
    found = marks(figures.rounds_chart(gallery, []), "series-0")
    assert len(found) == 5
    steps = [first - second for first, second in zip(found, found[1:], strict=False)]
    assert steps == pytest.approx([steps[0]] * 4, rel=1e-3)  # 20, 30, 40, 50 and 60 dB
    monkeypatch.setattr(figures, "MOST_MARKS", 41)
    assert figures.marks(gallery) is None


def test_exact_images_are_drawn_at_the_top_and_the_axis_says_so(make_run, lines):
    def rows(folder):
        return [lines.image(folder, 1, 0, "dlg", psnr, example=image) for image, psnr in enumerate((100.0, 200.0))]

    svg = chart(make_run(rows))
    assert len(set(marks(svg, "series-0"))) == 1
    assert "≥ 100" in svg


def test_colours_are_the_themes_alone(make_run, lines):
    svg = chart(make_run()) + figures.loss_chart(lines.rounds())
    assert not re.search(r"#[0-9a-fA-F]{6}|#[0-9a-fA-F]{3}\b", svg)
    assert "var(--ink)" in svg


def test_text_is_text(make_run):
    svg = chart(make_run())
    assert re.search(r"<text[^>]*>\s*PSNR, dB", svg)


def test_there_is_no_chart_of_nothing(make_run, lines):
    assert chart(make_run(lambda folder: [lines.failed(1, 0, "dlg", "why")])) is None
    assert figures.loss_chart([{"round": 0, "accuracy": None, "loss": None}]) is None
    assert figures.loss_chart([]) is None


def test_a_flat_zero_accuracy_still_draws(make_run):
    nothing = Gallery(read_records(make_run(lambda folder: [])))
    rounds = [{"round": at, "accuracy": 0.0, "loss": None} for at in (0, 1)]
    assert "Test accuracy" in figures.rounds_chart(nothing, rounds)


def test_the_callers_settings_stay(make_run):
    before = dict(rcParams)
    chart(make_run())
    assert dict(rcParams) == before


def test_the_axis_of_a_single_round_names_that_round_only(make_run, lines):
    svg = chart(make_run(lambda folder: [lines.image(folder, 1, 0, "dlg", 30.0)]))
    assert not re.search(r">[01]\.\d<", svg)
    assert ">1<" in svg


def test_the_fidelity_curve_counts_images_that_came_to_nothing():
    assert figures.survival([20.0, None, 120.0, 10.0], 100.0) == ([10.0, 20.0, 100.0], [0.75, 0.5, 0.25])
    assert figures.survival([None], 100.0) == ([], [])


def test_the_fidelity_curve_needs_several_images(make_run, lines):
    few = make_run(lambda folder: [lines.image(folder, 1, 0, "dlg", 30.0)])
    assert figures.fidelity_chart(Gallery(read_records(few))) is None


def test_the_fidelity_curve_has_a_line_for_each_attack(make_run):
    svg = figures.fidelity_chart(Gallery(read_records(make_run())))
    assert "Share of images" in svg
    assert "var(--series-1)" in svg


def long_rounds(count, every=1):
    return [{"round": at, "accuracy": 0.1 + 0.004 * at if at % every == 0 else None, "loss": 2.0} for at in range(count + 1)]


def sparse(lines):
    """Rows of a training of 100 rounds, attacked in three."""
    return lambda folder: [lines.image(folder, at, 0, "dlg", psnr) for at, psnr in ((1, 45.0), (10, 30.0), (100, 14.0))]


def across(svg, colour):
    return [float(x) for x in re.findall(rf'<use href="#[^"]+" x="([^"]+)" y="[^"]+" style="fill: var\(--{colour}\)', svg)]


def test_rounds_without_an_attack_have_no_mark_and_share_the_axis_of_accuracy(make_run, lines):
    gallery = Gallery(read_records(make_run(sparse(lines))))
    svg = figures.rounds_chart(gallery, long_rounds(100, every=10))
    leaks, accuracy = across(svg, "series-0"), across(svg, "ink")
    assert len(leaks) == 3
    assert len(accuracy) == 11
    # Round 10 and round 100 stand at the same place in both panels.
    assert leaks[1] == pytest.approx(accuracy[1], abs=0.5)
    assert leaks[2] == pytest.approx(accuracy[10], abs=0.5)
    assert "Test accuracy" in svg
    assert "epsilon" not in svg


def test_a_long_curve_has_no_marks_of_its_own(make_run, lines):
    gallery = Gallery(read_records(make_run(sparse(lines))))
    assert across(figures.rounds_chart(gallery, long_rounds(100)), "ink") == []


def test_epsilon_has_a_panel_where_rows_hold_one(make_run, lines):
    gallery = Gallery(read_records(make_run()))
    rounds = [row | {"epsilon": {"0": 0.5 * row["round"], "1": 0.1}} for row in lines.rounds() if row["round"]]
    svg = figures.rounds_chart(gallery, rounds)
    assert "largest epsilon" in svg
    assert 'aria-label="PSNR in dB, test accuracy, epsilon by round, beside both baselines"' in svg


def test_accuracy_alone_still_draws(make_run, lines):
    nothing = Gallery(read_records(make_run(lambda folder: [])))
    svg = figures.rounds_chart(nothing, lines.rounds())
    assert 'aria-label="test accuracy by round"' in svg
    assert figures.rounds_chart(nothing, []) is None


def test_both_baselines_cross_the_whole_axis(make_run, lines):
    gallery = Gallery(read_records(make_run(sparse(lines))))
    svg = figures.rounds_chart(gallery, long_rounds(100))
    dashed = re.findall(r'<path d="M ([\d.]+) [^"]*?L ([\d.]+) [\d.]+ ?\n?" [^>]*stroke-dasharray: [^>]*var\(--muted\)', svg)
    spans = [float(end) - float(start) for start, end in dashed]
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])
    assert len(spans) == 2
    assert min(spans) > 0.85 * width
