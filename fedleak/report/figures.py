"""Charts as inline SVG whose colours are the page's own, so that they follow its light and dark themes."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedleak.report.gallery import Gallery
from fedleak.report.records import baseline_psnr, number

TOP_DB = 100.0
"""PSNR in dB at which the chart ends; better images are drawn there."""

_FEWEST = 4  # images from which a share of them says something
MARKERS = ("o", "s", "^", "D", "v")
_THEME = {
    "#000001": "var(--muted)",
    "#000002": "var(--rule)",
    "#000003": "var(--ink)",
    **{f"#0000{10 + index}": f"var(--series-{index})" for index in range(6)},
}
_TEXT, _LINE, _INK = "#000001", "#000002", "#000003"


def series_colour(index: int) -> str:
    """Return the CSS colour of series ``index``."""
    return f"var(--series-{index % 6})"


def psnr_chart(gallery: Gallery) -> Markup | None:
    """Return PSNR in dB of every image as dots, medians by round as lines, and both baselines; ``None`` without images."""
    points: list[dict[int, list[float]]] = []
    baselines: dict[str, dict[int, list[float]]] = {"mean_image": {}, "random": {}}
    for series in gallery.series:
        by_round: dict[int, list[float]] = {}
        for place, row in gallery.rows(series):
            if (psnr := number(row.get("psnr"))) is None:
                continue
            by_round.setdefault(place.round, []).append(min(psnr, TOP_DB))
            for kind, found in baselines.items():
                if (value := baseline_psnr(row, kind)) is not None:
                    found.setdefault(place.round, []).append(value)
        points.append(by_round)
    rounds = sorted({server_round for by_round in points for server_round in by_round})
    if not rounds:
        return None
    figure, (axes,) = _figure(1)
    for kind, style in (("mean_image", (0, (5, 3))), ("random", (0, (1, 2.5)))):
        means = {at: statistics.fmean(values) for at, values in baselines[kind].items()}
        _flat(axes, means, {"color": _TEXT, "linewidth": 1.3, "linestyle": style, "zorder": 1})
    for index, by_round in enumerate(points):
        _dots(axes, by_round, index, len(points))
    top = max(value for by_round in points for values in by_round.values() for value in values)
    axes.set_ylim(0, max(20.0, top * 1.08))
    _label(axes, "PSNR, dB", rounds)
    if top >= TOP_DB:
        axes.set_yticks([0, 25, 50, 75, TOP_DB], ["0", "25", "50", "75", "≥ 100"])
    return _render(figure, "psnr", "PSNR of every reconstruction by round, beside both baselines")


def fidelity_chart(gallery: Gallery) -> Markup | None:
    """Return the share of images that each attack rebuilt to at least so many dB; ``None`` for fewer than four images.

    iDLG's fidelity curve (arXiv 2001.02610, figure 2), over PSNR in place of MSE. An image that an attack gave nothing of
    counts as not rebuilt.
    """
    if len(gallery.places) < _FEWEST or not gallery.series:
        return None
    figure, (axes,) = _figure(1)
    drawn = False
    for index, series in enumerate(gallery.series):
        # An update that came to nothing has one row without a PSNR, however many images are behind it.
        values = [number(row.get("psnr")) for _, row in gallery.rows(series)]
        at, shares = survival(values)
        if not at:
            continue
        axes.step(
            [0.0, *at, at[-1]],
            [shares[0], *shares, 0.0],
            where="pre",
            color=f"#0000{10 + index % 6}",
            linewidth=1.8,
            clip_on=False,
        )
        drawn = True
    if not drawn:
        return None
    axes.set_title("Share of images rebuilt to at least so much PSNR", loc="left", fontsize=13, color=_INK, pad=10)
    axes.set_xlabel("PSNR, dB", fontsize=13, color=_TEXT)
    axes.set_xlim(0, TOP_DB)
    axes.set_xticks([0, 25, 50, 75, TOP_DB], ["0", "25", "50", "75", "≥ 100"])
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    return _render(figure, "fidelity", "Share of images that each attack rebuilt to at least so many dB")


def survival(values: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Return PSNRs in dB, rising and cut at the chart's top, and the share in (0, 1] of all ``values`` that reach each."""
    found = sorted(min(value, TOP_DB) for value in values if value is not None)
    return found, [(len(found) - rank) / len(values) for rank in range(len(found))]


def utility_chart(rounds: Sequence[dict[str, Any]]) -> Markup | None:
    """Return test accuracy and test loss of the global model by round; ``None`` if neither was measured."""
    curves = [_curve(rounds, key) for key in ("accuracy", "loss")]
    if not any(curves):
        return None
    figure, panels = _figure(2)
    figure.set_layout_engine("constrained", hspace=0.16)
    for axes, curve, title in zip(panels, curves, ("Test accuracy", "Test loss"), strict=True):
        axes.plot(list(curve), list(curve.values()), color=_INK, linewidth=1.6, marker="o", markersize=4)
        _label(axes, title, sorted({at for found in curves for at in found}))
    if curves[0]:
        panels[0].set_ylim(0, min(1.0, max(curves[0].values()) * 1.25) or 1.0)
        panels[0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    panels[0].set_xlabel("")
    panels[0].tick_params(labelbottom=False)
    return _render(figure, "utility", "Test accuracy and test loss of the global model by round")


def _curve(rounds: Sequence[dict[str, Any]], key: str) -> dict[int, float]:
    found = ((number(row.get("round")), number(row.get(key))) for row in rounds)
    return {int(at): value for at, value in found if at is not None and value is not None}


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    figure.patch.set_visible(False)
    axes = [figure.add_subplot(panels, 1, 1 + index) for index in range(panels)]
    for one in axes:
        one.patch.set_visible(False)
        one.spines[["top", "right", "left"]].set_visible(False)
        one.spines["bottom"].set_color(_LINE)
        one.grid(axis="y", color=_LINE, linewidth=0.8)
        one.set_axisbelow(True)
        one.tick_params(colors=_TEXT, length=0, labelsize=13, pad=6)
    return figure, axes


def _label(axes: Axes, title: str, rounds: list[int]) -> None:
    axes.set_title(title, loc="left", fontsize=13, color=_INK, pad=10)
    axes.set_xlabel("Round", fontsize=13, color=_TEXT)
    axes.set_xlim(rounds[0] - 0.5, rounds[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))


def _dots(axes: Axes, by_round: dict[int, list[float]], index: int, total: int) -> None:
    colour, marker = f"#0000{10 + index % 6}", MARKERS[index % len(MARKERS)]
    slot = 0.7 / total
    centre = (index - (total - 1) / 2) * slot
    for server_round, values in by_round.items():
        # Evenly spread, not at random: the same run always gives the same page.
        spread = [centre + server_round + 0.6 * slot * ((rank + 0.5) / len(values) - 0.5) for rank in range(len(values))]
        axes.plot(
            spread, values, linestyle="", marker=marker, markersize=6, color=colour, alpha=0.55, markeredgewidth=0, clip_on=False
        )
    medians = {at + centre: statistics.median(values) for at, values in sorted(by_round.items())}
    if len(medians) > 1:
        axes.plot(list(medians), list(medians.values()), color=colour, linewidth=1.8)
    else:
        for at, value in medians.items():
            half = min(0.45 * slot, 0.12)
            axes.hlines(value, at - half, at + half, color=colour, linewidth=1.8)


def _flat(axes: Axes, by_round: dict[int, float], style: dict[str, Any]) -> None:
    ordered = sorted(by_round.items())
    if not ordered:
        return
    at = [ordered[0][0] - 0.5, *(point for point, _ in ordered), ordered[-1][0] + 0.5]
    axes.plot(at, [ordered[0][1], *(value for _, value in ordered), ordered[-1][1]], **style)


def _render(figure: Figure, name: str, title: str) -> Markup:
    FigureCanvasSVG(figure)
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg")
    drawing = text.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", drawing, flags=re.S)
    drawing = re.sub(r' xmlns(:xlink)?="[^"]*"', "", drawing).replace("xlink:href", "href")
    drawing = _own_ids(drawing, name)
    drawing = re.sub("#0000[0-9]{2}", lambda found: _THEME.get(found[0], found[0]), drawing)
    head = re.match(r"<svg[^>]*>", drawing)
    size = re.search(r'viewBox="([^"]*)"', drawing)
    if head is None or size is None:
        raise RuntimeError("matplotlib wrote an SVG without a viewBox; expected one from its SVG backend")
    opening = f'<svg class="chart" role="img" aria-label="{title}" viewBox="{size[1]}">'
    return Markup(opening + drawing[head.end() :])


def _own_ids(drawing: str, name: str) -> str:
    """Drop the ids that nothing refers to, and put ``name`` before the others: two charts share a page."""
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', drawing))

    def rename(found: re.Match[str]) -> str:
        return f' id="{name}-{found[1]}"' if found[1] in used else ""

    drawing = re.sub(r' id="([^"]*)"', rename, drawing)
    return re.sub(r'(url\(|href=")#', rf"\1#{name}-", drawing)
