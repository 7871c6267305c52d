"""Made-up rows of a sweep's table, and a sweep of seconds: closed form on 16-pixel samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedleak.sweeps import sweep as module
from fedleak.sweeps.cell import run_cell

Row = dict[str, Any]

TINY = """
name = "tiny"
about = "A sweep of seconds."
full = ["federation.rounds=2"]

[scenario.data]
source = "samples"
image_size = 16
[scenario.model]
name = "mlp"
hidden = [8]
[scenario.federation]
clients = 2
rounds = 1
[[scenario.attacks]]
name = "closed-form"

[[axes]]
key = "seed"
values = [1, 2]

[[defenses]]
name = "gaussian-noise"
strengths.std = [1e-4, 0.1]
"""


def made_up(
    gains: Sequence[float | None],
    defense: str = "noise",
    attack: str = "cosine",
    seed: int = 1,
    *,
    knows: bool = False,
    setting: str = "",
    identified: Sequence[bool | None] | None = None,
    **changes: Any,
) -> Row:
    """One row of a sweep's table, with so many dB of gain for each private image."""
    told = identified or [None] * len(gains)
    images = [
        {"name": f"{seed}-{number}", "gain": value, "identified": found, "exhibit": None}
        for number, (value, found) in enumerate(zip(gains, told, strict=True))
    ]
    row: Row = {
        "cell": f"{defense}-{setting}-{seed}",
        "folder": f"cells/{defense}-{setting}-{seed}",
        "defense": defense,
        "family": defense.split(" ")[0],
        "strength": defense.partition(" ")[2],
        "control": defense == "none",
        "setting": setting,
        "seed": seed,
        "chance": 0.2,
        "attack": attack,
        "knows_defense": knows,
        "examples": images,
        "accuracy": None,
        "epsilon": None,
        "error": None,
    }
    return row | changes


@pytest.fixture
def row() -> Callable[..., Row]:
    """Make a row."""
    return made_up


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Write the small sweep's file."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run cells in this process; return the names of those that are run, as they are."""
    ran: list[str] = []

    class Here:
        def __init__(self, workers: int, log: Path, function: str) -> None:
            pass

        def run(self, jobs: Any, watcher: Any) -> None:
            for job in jobs:
                ran.append(job.name)
                watcher.at(job.name, "starting")
                run_cell(job)
                watcher.done(job.name, None)

    monkeypatch.setattr(module, "Pool", Here)
    return ran
