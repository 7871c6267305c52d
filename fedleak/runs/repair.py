"""Sets damaged lines of a run folder aside, so that the whole ones can be read on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from fedleak.printable import plural
from fedleak.runs.folder import RunFolder
from fedleak.runs.forms import LINES
from fedleak.runs.reading import read_lines

ASIDE = ".damaged"
"""How the name of the file ends that takes damaged lines, after the name of the file that held them."""


@dataclass(frozen=True)
class Repair:
    """What was set aside.

    Attributes
    ----------
    file : str
        Name of the file that was damaged.
    lines : int
        How many of its lines.
    kept : str or None
        Name of the file that took them, as they were, after those of earlier repairs; ``None`` for lines that are not there.
    """

    file: str
    lines: int
    kept: str | None

    def __str__(self) -> str:
        if self.kept is None:
            return f"{plural(self.lines, 'line')} of {self.file} missing"
        return f"{plural(self.lines, 'damaged line')} of {self.file} set aside in {self.kept}"


def note(folder: RunFolder, one: Repair) -> None:
    """Write into the manifest that lines are missing; the report says it."""
    manifest = folder.manifest
    manifest.setdefault("repairs", []).append({**asdict(one), "when": datetime.now(UTC).isoformat(timespec="seconds")})
    folder.write_json("manifest.json", manifest)


def repair(folder: RunFolder) -> list[Repair]:
    """Set the damaged lines of a run folder aside, and note in its manifest that they are missing.

    Parameters
    ----------
    folder : RunFolder
        Held alone; its manifest is whole.

    Returns
    -------
    list of Repair
        One for each file that had any.

    Raises
    ------
    ScenarioError
        If a file cannot be read at all.
    FedleakError
        If one cannot be written; then nothing is lost.
    """
    folder.scenario  # noqa: B018 (a manifest that is damaged itself is refused first)
    done = []
    for name in LINES:
        found = read_lines(folder.path / name)
        if not found.damaged:
            continue
        kept = f"{name}{ASIDE}"
        one = Repair(name, len(found.damaged), kept)
        # Kept before they are taken out: a kill in between leaves them twice, and loses none.
        folder.append_bytes(kept, b"".join(line + b"\n" for line, _ in found.damaged.values()))
        note(folder, one)
        folder.replace_file(name, b"".join(line + b"\n" for line in found.whole))
        done.append(one)
    return done
