"""A PNG of private examples over their reconstructions, as a README shows it."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fedleak.errors import ScenarioError
from fedleak.report.gallery import Cell, Gallery, Place
from fedleak.runs.records import read_records

_DPI = 200
# Inches: an image, the gap between two, its caption, the margin, and a letter of a row's name.
_SIDE, _GAP, _CAPTION, _MARGIN, _LETTER = 0.62, 0.09, 0.2, 0.12, 0.062
_INK, _MUTED = "#1b1b19", "#66645d"


def save_grid(folder: Path, out: Path, columns: int = 8) -> Path:
    """Draw the first private examples of a run over what each attack made of them.

    Parameters
    ----------
    folder : Path
        A run folder.
    out : Path
        The PNG to write; its folder is made.
    columns : int
        At most so many examples; one that is the same in several rounds is shown once, from the first of them.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    ScenarioError
        If ``folder`` is not a run folder or holds no picture, or ``columns`` is below 1.
    """
    if columns < 1:
        raise ScenarioError(f"columns is {columns}; expected at least 1")
    gallery = Gallery(read_records(Path(folder)))
    places = _first_of_each(gallery)[:columns]
    rows = [(series.title, [gallery.cell(series, place) for place in places]) for series in gallery.series]
    if gallery.reveals:
        rows.insert(0, (f"private {gallery.measure.noun}", [gallery.truth_cell(place) for place in places]))
    rows = [(name, cells) for name, cells in rows if any(cell.kind != "empty" for cell in cells)]
    if not any(cell.shown for _, cells in rows for cell in cells):
        raise ScenarioError(f"{folder}: holds no pictures; expected a run in which an attack returned an image")
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    _draw(rows, len(places)).savefig(out, dpi=_DPI, format="png", facecolor="white", metadata={"Software": None})
    return out


def _first_of_each(gallery: Gallery) -> list[Place]:
    first: dict[object, Place] = {}
    for place in gallery.places:
        first.setdefault(gallery.identity(place) or place, place)
    return list(first.values())


def _draw(rows: list[tuple[str, list[Cell]]], columns: int) -> Figure:
    names = 0.1 + _LETTER * max(len(name) for name, _ in rows)
    width = 2 * _MARGIN + names + columns * (_SIDE + _GAP) - _GAP
    height = 2 * _MARGIN + len(rows) * (_SIDE + _CAPTION)
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    for row, (name, cells) in enumerate(rows):
        bottom = height - _MARGIN - row * (_SIDE + _CAPTION) - _SIDE
        _text(figure, _MARGIN, bottom + _SIDE / 2, name, width, height, size=7.5, ha="left")
        for column, cell in enumerate(cells):
            left = _MARGIN + names + column * (_SIDE + _GAP)
            _picture(figure, cell, (left / width, bottom / height, _SIDE / width, _SIDE / height))
            caption = cell.figure or {"failed": "failed", "empty": ""}.get(cell.kind, cell.label or "")
            colour = _INK if cell.strength == "close" else _MUTED
            _text(figure, left + _SIDE / 2, bottom - 0.09, caption, width, height, size=6, color=colour)
    return figure


def _picture(figure: Figure, cell: Cell, box: tuple[float, float, float, float]) -> None:
    axes = figure.add_axes(box)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(cell.shown is None)
    axes.spines[:].set_color("#d8d6cf")
    axes.spines[:].set_linewidth(0.6)
    if cell.shown is not None:
        cell.shown.exhibit.draw(axes, cell.shown.content, _SIDE * _DPI)


def _text(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    width: float,
    height: float,
    *,
    size: float,
    ha: str = "center",
    color: str = _INK,
) -> None:
    # A dollar sign in a name is no formula.
    figure.text(x / width, y / height, text, fontsize=size, ha=ha, va="center", color=color, parse_math=False)
