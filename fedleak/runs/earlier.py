"""What earlier versions wrote, read as today's would have been written.

Until there was more than one modality, a row was of an image, and had its figures beside its other columns.
"""

from __future__ import annotations

from typing import Any

from fedleak.modalities.find import EARLIEST

Row = dict[str, Any]

_FIGURES = ("psnr", "ssim", "mse", "lpips")
_NAMES = {"image": "example", "images": "examples", "truth_png": "truth", "png": "exhibit"}
_SPREAD = ("mean", "median", "min", "max")


def of_today(row: Row) -> Row:
    """Return a line of ``reconstructions.jsonl``, or an entry of a summary's ``leakage``, with its figures under ``metrics``.

    What is written like today's comes back as it is, as do lines of other files.
    """
    if "metrics" in row or _FIGURES[0] not in row:
        return row
    found: Row = {}
    for key, value in row.items():
        if key in _FIGURES:
            found.setdefault("metrics", {})
            if (figure := _figure(value)) is not None:
                found["metrics"][key] = figure
        elif key == "baseline":
            found[key] = {guess: _known(figures) for guess, figures in value.items()} if isinstance(value, dict) else {}
        else:
            found[_NAMES.get(key, key)] = value
    return {"modality": EARLIEST, **found}


def summary_of_today(summary: Row) -> Row:
    """Return what ``summary.json`` holds, its ``leakage`` likewise."""
    entries = summary.get("leakage")
    if not isinstance(entries, list):
        return summary
    return {**summary, "leakage": [of_today(entry) if isinstance(entry, dict) else entry for entry in entries]}


def sweep_row_of_today(row: Row) -> Row:
    """Return a row of a sweep's table likewise; one that is written like today's, or attacked nothing, as it is."""
    if "metrics" in row or _FIGURES[0] not in row:
        return row
    moved = ("psnr", "psnr_max", "ssim", "mean_image", "random", "images")
    return {
        **{key: value for key, value in row.items() if key not in moved},
        "modality": EARLIEST,
        "metrics": _known({key: row.get(key) for key in ("psnr", "ssim")}),
        "best": row.get("psnr_max"),
        "baseline": _known({key: row.get(key) for key in ("mean_image", "random")}),
        "examples": [{_NAMES.get(key, key): value for key, value in image.items()} for image in _tables(row.get("images"))],
    }


def _tables(value: Any) -> list[Row]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _figure(value: Any) -> Any:
    """Return a figure, or a summary's spread of one; ``None`` if nothing is known."""
    if not isinstance(value, dict):
        return value
    return {**dict.fromkeys(_SPREAD), **value} if any(inner is not None for inner in value.values()) else None


def _known(figures: Any) -> Row:
    return {name: value for name, value in figures.items() if value is not None} if isinstance(figures, dict) else {}
