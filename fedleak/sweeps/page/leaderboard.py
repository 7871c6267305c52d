"""The leaderboard's page: one table for each modality and threat model, in one self-contained file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedleak.errors import ScenarioError
from fedleak.modalities.find import measure
from fedleak.printable import plural
from fedleak.process.files import write_whole
from fedleak.report import formats
from fedleak.report.pages import asset, render
from fedleak.runs.folder import Row
from fedleak.sweeps.lines import Line, figures
from fedleak.threat import PRESETS

_ORDER = list(PRESETS)


def write_page(lines: Sequence[Line], unfinished: Sequence[str], target: Path) -> None:
    """Write the page.

    Parameters
    ----------
    lines : sequence of Line
        What to show; each row holds what :func:`fedleak.sweeps.rows.run_rows` returns, ``defense``, ``control`` and ``report``.
    unfinished : sequence of str
        Runs that were left out.
    target : Path
        The file; its folder is made.
    """
    groups: dict[tuple[str, int, bool], list[Line]] = {}
    for line in lines:
        threat = _ORDER.index(line.first["threat"]), bool(line.first["defense_known"])
        groups.setdefault((line.measure.modality, *threat), []).append(line)
    context = {
        "groups": [
            {
                "measure": (measured := measure(modality)),
                "beside": [one for one in measured.beside if not one.optional],
                "preset": _ORDER[preset],
                "knows": knows,
                "granted": sorted(fact.value for fact in PRESETS[_ORDER[preset]]),
                "undefended": _table([line for line in found if line.first["control"]]),
                "defended": _table([line for line in found if not line.first["control"]]),
            }
            for (modality, preset, knows), found in sorted(groups.items())
        ],
        "measures": list(dict.fromkeys(line.measure for line in lines)),
        "runs": len({row["report"] for line in lines for row in line.rows}),
        "attacks": len({line.first["attack"] for line in lines}),
        "unfinished": list(unfinished),
        "style": asset("style.css"),
        "more_style": asset("tables.css"),
    }
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target.parent, target.name, render("leaderboard.html.j2", context).encode(errors="replace"), sync=False)
    except OSError as error:
        raise ScenarioError(f"--out {target}: cannot be written ({error.strerror}); expected the name of an HTML file") from error


def _table(found: Sequence[Line]) -> list[Row]:
    """Return the lines of one table: by setting and defense, the attack with the largest gain first."""
    rows = [_line(line) for line in found]
    return sorted(rows, key=lambda row: (row["setting"], row["defense"], -math.inf if row["gain"] is None else -row["gain"]))


def spelt(parameters: dict[str, Any] | None) -> list[str]:
    """Return a plugin's parameters as ``key=value``."""
    return [f"{key}={formats.plain(value)}" for key, value in (parameters or {}).items()]


def _line(line: Line) -> dict[str, Any]:
    first, found = line.first, line.attacked
    steps = f", {first['steps']} steps" if first.get("steps") else ""
    return {
        "attack": first["attack"],
        "parameters": spelt(first.get("parameters")),
        "knows": first["knows_defense"],
        "defense": first["defense"],
        "data": first["data"],
        "size": f"{first['image_size']} px" if first.get("image_size") else "",
        "model": first["model"],
        "model_parameters": spelt(first.get("model_parameters")),
        "batch": first["batch"],
        "sent": f"{first['protocol']}{steps}, {plural(first['clients'], 'client')}",
        "setting": f"{first['data']} {first['model']} {first['batch']:04d} {first['protocol']}{steps} {first['clients']}",
        "rounds": first["rounds"],
        "gain": found.gain.mean if found else None,
        "half": found.gain.half if found and math.isfinite(found.gain.half) else None,
        "examples": found.gain.examples if found else 0,
        **figures(line),
        "failures": line.total("failures"),
        **{key: line.mean(key) for key in ("label_accuracy", "identification")},
        **{key: line.mean(key) for key in ("cpu_seconds", "accuracy", "epsilon")},
        "runs": [(formats.plain(row["seed"]), row["report"]) for row in line.rows],
    }
