"""Charts as inline SVG whose colours are the page's own, so that they follow its light and dark themes.

matplotlib is imported when the first is drawn: whoever starts a run need not wait for it.
"""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from fedleak.evaluation.utility import epsilon_by_round
from fedleak.modalities.base import Measure
from fedleak.report.gallery import Gallery
from fedleak.runs.records import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_MARKS = 2_000
"""So many examples are marked in the chart of rounds at most, so that a long run's page stays quick."""

_MARKED = 60  # points up to which a curve marks each
_FEWEST = 4  # examples from which a share of them says something
DASHES: tuple[tuple[float, ...], ...] = ((5, 3), (1, 2.5), (7, 2, 1.5, 2))
"""How the line of each baseline is dashed, in points."""
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


def rounds_chart(gallery: Gallery, rounds: Sequence[dict[str, Any]]) -> Markup | None:
    """Return what leaked in each round over what the model was worth then, on one axis of rounds; ``None`` if neither is known.

    The headline figure of every example as dots, each attack's medians as a line, and the baselines; a round without an attack
    has no mark. Below it test accuracy, and the largest epsilon of any client, where they were measured.
    """
    leaks, baselines = _leaks(gallery)
    accuracy, epsilon = _curve(rounds, "accuracy"), epsilon_by_round(rounds)
    attacked = {at for by_round in leaks for at in by_round}
    heights = [2.4] * bool(attacked) + [1.0] * bool(accuracy) + [1.0] * bool(epsilon)
    if not heights:
        return None
    axis = sorted({*attacked, *accuracy, *epsilon})
    figure, panels = _figure(heights, width=12.8, height=1.2 + 1.5 * sum(heights))
    headline = gallery.measure.headline
    titles, free = [" in ".join(filter(None, (headline.label, headline.unit)))] * bool(attacked), iter(panels)
    if attacked:
        _draw_leaks(next(free), gallery.measure, leaks, baselines, axis, marks(gallery))
    if accuracy:
        axes = next(free)
        _line(axes, accuracy)
        _label(axes, "Test accuracy of the global model", axis)
        axes.set_ylim(0, min(1.0, max(accuracy.values()) * 1.25) or 1.0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        titles.append("test accuracy")
    if epsilon:
        axes = next(free)
        _line(axes, epsilon, drawstyle="steps-post")
        _label(axes, "Privacy: the largest epsilon of any client so far", axis)
        axes.set_ylim(0, max(epsilon.values()) * 1.15 or 1.0)
        titles.append("epsilon")
    for axes in panels[:-1]:
        axes.set_xlabel("")
        axes.tick_params(labelbottom=False)
    return _render(figure, "rounds", ", ".join(titles) + " by round" + ", beside both baselines" * bool(attacked))


def marks(gallery: Gallery) -> int | None:
    """Return how many examples of an attack and a round are marked at most; ``None`` if all are."""
    points, _ = _leaks(gallery)
    sizes = [len(values) for by_round in points for values in by_round.values()]
    return None if sum(sizes) <= MOST_MARKS else max(3, MOST_MARKS // len(sizes))


def _by_rank(values: list[float], most: int | None) -> list[float]:
    """Return ``most`` of the values, evenly by rank, the least and the greatest among them."""
    if most is None or len(values) <= most:
        return values
    ordered = sorted(values)
    return [ordered[round(place * (len(ordered) - 1) / (most - 1))] for place in range(most)]


def _leaks(gallery: Gallery) -> tuple[list[dict[int, list[float]]], dict[str, dict[int, list[float]]]]:
    """Return headline figures by round for each series, and those of the baselines."""
    measure = gallery.measure
    points: list[dict[int, list[float]]] = []
    baselines: dict[str, dict[int, list[float]]] = {baseline.name: {} for baseline in measure.baselines}
    for series in gallery.series:
        by_round: dict[int, list[float]] = {}
        for place, row in gallery.rows(series):
            if (value := measure.value(row)) is None:
                continue
            by_round.setdefault(place.round, []).append(min(value, measure.thresholds.top))
            for kind, found in baselines.items():
                if (guess := measure.guess(row, kind)) is not None:
                    found.setdefault(place.round, []).append(guess)
        points.append(by_round)
    return points, baselines


def _draw_leaks(
    axes: Axes,
    measure: Measure,
    points: Sequence[dict[int, list[float]]],
    baselines: dict[str, dict[int, list[float]]],
    axis: list[int],
    most: int | None,
) -> None:
    for index, by_round in enumerate(baselines.values()):
        means = {at: statistics.fmean(values) for at, values in by_round.items()}
        style = {"color": _TEXT, "linewidth": 1.3, "linestyle": (0, DASHES[index % len(DASHES)]), "zorder": 1}
        _flat(axes, means, axis, style)
    for index, by_round in enumerate(points):
        _dots(axes, by_round, index, len(points), most)
    top = max(value for by_round in points for values in by_round.values() for value in values)
    axes.set_ylim(0, max(measure.thresholds.clear, top * 1.08))
    _label(axes, measure.headline.title, axis)
    if top >= measure.thresholds.top:
        axes.set_yticks(*_ticks(measure))


def _ticks(measure: Measure) -> tuple[list[float], list[str]]:
    """Return five ticks from 0 to where charts of the headline end, where what is higher is drawn too."""
    at = [measure.thresholds.top * quarter / 4 for quarter in range(5)]
    return at, [*(f"{value:g}" for value in at[:-1]), f"≥ {at[-1]:g}"]


def _margin(axis: Sequence[int]) -> float:
    return max(0.5, 0.01 * (axis[-1] - axis[0]))


def _line(axes: Axes, curve: dict[int, float], drawstyle: str = "default") -> None:
    style: dict[str, Any] = {"color": _INK, "linewidth": 1.6, "marker": "o", "markersize": 4.0 if len(curve) <= _MARKED else 0.0}
    axes.plot(list(curve), list(curve.values()), drawstyle=drawstyle, clip_on=False, **style)


def fidelity_chart(gallery: Gallery) -> Markup | None:
    """Return the share of examples that each attack rebuilt at least so well; ``None`` for fewer than four examples.

    iDLG's fidelity curve (arXiv 2001.02610, figure 2), over the headline figure. An example that an attack gave nothing of counts
    as not rebuilt.
    """
    if len(gallery.places) < _FEWEST or not gallery.series:
        return None
    measure = gallery.measure
    headline, nouns = measure.headline, measure.nouns
    figure, (axes,) = _figure([1.0])
    drawn = False
    for index, series in enumerate(gallery.series):
        # An update that came to nothing has one row without a figure, however many examples are behind it.
        values = [measure.value(row) for _, row in gallery.rows(series)]
        at, shares = survival(values, measure.thresholds.top)
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
    axes.set_title(f"Share of {nouns} rebuilt to at least so much {headline.label}", loc="left", fontsize=13, color=_INK, pad=10)
    axes.set_xlabel(headline.title, fontsize=13, color=_TEXT)
    axes.set_xlim(0, measure.thresholds.top)
    axes.set_xticks(*_ticks(measure))
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    much = f"many {headline.unit}" if headline.unit else f"much {headline.label}"
    return _render(figure, "fidelity", f"Share of {nouns} that each attack rebuilt to at least so {much}")


def survival(values: Sequence[float | None], top: float) -> tuple[list[float], list[float]]:
    """Return figures, rising and cut at ``top``, and the share in (0, 1] of all ``values`` that reach each."""
    found = sorted(min(value, top) for value in values if value is not None)
    return found, [(len(found) - rank) / len(values) for rank in range(len(found))]


def loss_chart(rounds: Sequence[dict[str, Any]]) -> Markup | None:
    """Return the test loss of the global model by round; ``None`` if it was not measured."""
    loss = _curve(rounds, "loss")
    if not loss:
        return None
    figure, (axes,) = _figure([1.0])
    _line(axes, loss)
    _label(axes, "Test loss of the global model, nats", sorted(loss))
    return _render(figure, "loss", "Test loss of the global model by round")


def _curve(rounds: Sequence[dict[str, Any]], key: str) -> dict[int, float]:
    found = ((number(row.get("round")), number(row.get(key))) for row in rounds)
    return {int(at): value for at, value in found if at is not None and value is not None}


def _figure(heights: Sequence[float], width: float = 6.4, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_visible(False)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=list(heights))
    figure.set_layout_engine("constrained", hspace=0.06)
    axes = [figure.add_subplot(grid[index]) for index in range(len(heights))]
    for one in axes:
        one.patch.set_visible(False)
        one.spines[["top", "right", "left"]].set_visible(False)
        one.spines["bottom"].set_color(_LINE)
        one.grid(axis="y", color=_LINE, linewidth=0.8)
        one.set_axisbelow(True)
        one.tick_params(colors=_TEXT, length=0, labelsize=13, pad=6)
    return figure, axes


def _label(axes: Axes, title: str, rounds: list[int]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontsize=13, color=_INK, pad=10)
    axes.set_xlabel("Round", fontsize=13, color=_TEXT)
    axes.set_xlim(rounds[0] - _margin(rounds), rounds[-1] + _margin(rounds))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))


def _dots(axes: Axes, by_round: dict[int, list[float]], index: int, total: int, most: int | None) -> None:
    colour, marker = f"#0000{10 + index % 6}", MARKERS[index % len(MARKERS)]
    slot = 0.7 / total
    centre = (index - (total - 1) / 2) * slot
    for server_round, found in by_round.items():
        values = _by_rank(found, most)
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


def _flat(axes: Axes, by_round: dict[int, float], axis: list[int], style: dict[str, Any]) -> None:
    """Draw a baseline over the whole axis: between rounds it is as it was in the nearest one attacked."""
    ordered = sorted(by_round.items())
    if not ordered:
        return
    at = [axis[0] - _margin(axis), *(point for point, _ in ordered), axis[-1] + _margin(axis)]
    axes.plot(at, [ordered[0][1], *(value for _, value in ordered), ordered[-1][1]], **style)


def _render(figure: Figure, name: str, title: str) -> Markup:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

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
