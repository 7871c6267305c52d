"""Charts of a sweep: leakage against accuracy with the Pareto front, and the gain of every attack by defense."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedleak.modalities.base import Measure
from fedleak.report.figures import _INK, _LINE, _TEXT, DASHES, MARKERS, _render

_ROW = 0.34  # inches of a defense in the chart by defense
_LONGEST = 36  # letters of a label


@dataclass(frozen=True)
class Point:
    """A mark: leakage as gain over the better guess, with its interval, beside accuracy in [0, 1] where it is known."""

    label: str
    series: int
    gain: float
    low: float
    high: float
    accuracy: float | None = None


def colour(index: int) -> str:
    """Return the placeholder colour of series ``index``, which the page's theme replaces."""
    return f"#0000{10 + index % 6}"


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """Return the points that no other beats in accuracy without leaking more, by rising accuracy.

    Parameters
    ----------
    points : iterable of Point
        Those without an accuracy are left out.
    """
    known = [(point.accuracy, point) for point in points if point.accuracy is not None]
    front: list[Point] = []
    for _, point in sorted(known, key=lambda pair: (-pair[0], pair[1].gain)):
        if not front or point.gain < front[-1].gain:
            front.append(point)
    return front[::-1]


def trade_chart(points: Sequence[Point], guesses: dict[str, float], measure: Measure, name: str) -> Markup | None:
    """Return leakage over test accuracy with the Pareto front; ``None`` where no accuracy was measured.

    Parameters
    ----------
    points : sequence of Point
        The best attack on each defense.
    guesses : dict
        The gain of each baseline over the better one, by its name.
    measure : Measure
        Of the examples' modality.
    name : str
        Of the chart, for its ids; letters and hyphens.
    """
    shown = [point for point in points if point.accuracy is not None]
    if not shown:
        return None
    figure, axes = _panel(4.6)
    for value, style in _dashed(guesses, measure):
        axes.axhline(value, color=_TEXT, linewidth=1.3, linestyle=style, zorder=1)
    front = pareto_front(shown)
    axes.step(
        [100 * (point.accuracy or 0) for point in front],
        [point.gain for point in front],
        where="pre",
        color=_INK,
        linewidth=1.2,
        zorder=2,
    )
    for point in shown:
        x = 100 * (point.accuracy or 0.0)
        _mark(axes, x, point.gain, point, horizontal=False)
        axes.annotate(
            _short(point.label),
            (x, point.gain),
            xytext=(7, 5),
            textcoords="offset points",
            fontsize=10,
            color=_TEXT,
            parse_math=False,
        )
    axes.set_xlabel("Test accuracy, %", fontsize=13, color=_TEXT)
    axes.set_title(_in_unit("Gain of the best attack over a guess", measure), loc="left", fontsize=13, color=_INK, pad=10)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.margins(x=0.18, y=0.12)
    return _render(figure, f"trade-{name}", "Leakage over test accuracy, with the Pareto front")


def gain_chart(rows: Sequence[tuple[str, Sequence[Point]]], guesses: dict[str, float], measure: Measure, name: str) -> Markup:
    """Return the gain of every attack, a line of the chart for each defense.

    Parameters
    ----------
    rows : sequence of (str, sequence of Point)
        Each defense and its attacks.
    guesses, measure, name
        As for :func:`trade_chart`.
    """
    figure, axes = _panel(1.3 + _ROW * len(rows))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=_LINE, linewidth=0.8)
    for value, style in _dashed(guesses, measure):
        axes.axvline(value, color=_TEXT, linewidth=1.3, linestyle=style, zorder=1)
    axes.axvspan(0, measure.thresholds.nothing, color=_LINE, alpha=0.6, linewidth=0, zorder=0)
    for position, (_, points) in enumerate(rows):
        for rank, point in enumerate(points):
            offset = 0.5 * ((rank + 0.5) / len(points) - 0.5)
            _mark(axes, point.gain, position + offset, point, horizontal=True)
    axes.set_yticks(range(len(rows)), [_short(label) for label, _ in rows], parse_math=False)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(_in_unit("Gain over a guess", measure), fontsize=13, color=_TEXT)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7))
    return _render(figure, f"gain-{name}", "Gain of every attack over a guess, by defense")


def _dashed(guesses: dict[str, float], measure: Measure) -> list[tuple[float, tuple[int, tuple[float, ...]]]]:
    """Return the gain of each baseline with the style of its line."""
    found = ((guesses.get(baseline.name), DASHES[index % len(DASHES)]) for index, baseline in enumerate(measure.baselines))
    return [(value, (0, dashes)) for value, dashes in found if value is not None]


def _in_unit(text: str, measure: Measure) -> str:
    return f"{text}, {measure.headline.unit}" if measure.headline.unit else text


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _mark(axes: Axes, x: float, y: float, point: Point, *, horizontal: bool) -> None:
    drawn, marker = colour(point.series), MARKERS[point.series % len(MARKERS)]
    if math.isfinite(point.low) and math.isfinite(point.high):
        draw = axes.hlines if horizontal else axes.vlines
        draw(y if horizontal else x, point.low, point.high, color=drawn, linewidth=1.6, alpha=0.8, zorder=3)
    axes.plot([x], [y], linestyle="", marker=marker, markersize=7, color=drawn, markeredgewidth=0, clip_on=False, zorder=4)


def _panel(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.6, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_LINE)
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_TEXT, length=0, labelsize=12, pad=6)
    return figure, axes
