"""What a run left behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedleak.runs.folder import Row, RunFolder


@dataclass(frozen=True)
class Result:
    """What a run left behind.

    Attributes
    ----------
    path : Path
        The run folder.
    summary : dict
        The content of ``summary.json``.
    here : bool
        Whether the folder is on this machine; that of a deployment is where its server ran.
    """

    path: Path
    summary: Row
    here: bool = True

    @property
    def report(self) -> Path:
        """The HTML page."""
        return self.path / "report.html"

    @property
    def reconstructions(self) -> list[Row]:
        """One row an image, as in ``reconstructions.jsonl``."""
        return RunFolder(self.path).rows("reconstructions.jsonl")
