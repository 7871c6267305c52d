"""What the run behind a sweep's file found, as the file itself tells it."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date

from pydantic import Field

from fedleak.errors import ScenarioError, nearest
from fedleak.scenario.schema import Section
from fedleak.sweeps.verdicts import Word


class FoundLine(Section):
    """One line of the table: a defense at one strength, or the control."""

    defense: str = Field(min_length=1, description="as the sweep's tables call it, such as 'gaussian-noise std=0.01', or 'none'")
    psnr: dict[str, float] = Field(default={}, description="mean PSNR in dB by attack, without those that gave no image")
    verdict: Word | None = Field(default=None, description="leaks, degrades, blocks or inconclusive")
    accuracy: tuple[float, ...] = Field(default=(), description="on test images after the last round, by seed, in %")
    note: str = ""


class Found(Section):
    """What a sweep found, when, and by which command."""

    when: date = Field(description="the day of the run, such as 2026-11-25")
    command: str = Field(min_length=1, description="what was run")
    about: str = Field(default="", description="how to read the lines: images, baselines, and what is to be learnt")
    lines: tuple[FoundLine, ...] = ()

    @property
    def attacks(self) -> list[str]:
        """All attacks of the lines, in their order."""
        return list(dict.fromkeys(attack for line in self.lines for attack in line.psnr))


def check_found(found: Found, defenses: Collection[str], attacks: Collection[str], path: str) -> None:
    """Refuse lines that tell of defenses or attacks that are not in the sweep.

    Parameters
    ----------
    found : Found
        What a file tells.
    defenses, attacks : collection of str
        What its sweep has, as its tables call them.
    path : str
        The file, for the message.

    Raises
    ------
    ScenarioError
        If a line names another one, or two lines are of one defense.
    """
    seen: set[str] = set()
    for number, line in enumerate(found.lines):
        where = f"{path}: found.lines[{number}]"
        if line.defense not in defenses:
            raise ScenarioError(f"{where}.defense: '{line.defense}' is no line of this sweep; {nearest(line.defense, defenses)}")
        if line.defense in seen:
            raise ScenarioError(f"{where}.defense: '{line.defense}' stands there twice; leave one out")
        seen.add(line.defense)
        if unknown := next((name for name in line.psnr if name not in attacks), None):
            raise ScenarioError(f"{where}.psnr: '{unknown}' is none of the attacks; {nearest(unknown, attacks)}")
