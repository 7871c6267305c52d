"""The attacker's books: one row for each image that was graded or could not be, and one for each round that broke an attack."""

from __future__ import annotations

from fedleak.runs.folder import PROBLEMS, Row, RunFolder


class Books:
    """Appends rows to the run folder as they come.

    Parameters
    ----------
    folder : RunFolder
        Takes them.
    rows : str
        Name of the file that takes the rows of reconstructions.
    problems : str
        Name of the one that takes what attacks could not be shown.
    """

    def __init__(self, folder: RunFolder, *, rows: str = "reconstructions.jsonl", problems: str = PROBLEMS) -> None:
        self._folder = folder
        self._rows = rows
        self._problems = problems

    def keep(self, rows: list[Row]) -> None:
        """Keep rows of reconstructions."""
        self._folder.append(self._rows, rows)

    def keep_problem(self, row: Row) -> None:
        """Keep a problem."""
        self._folder.append(self._problems, [row])

    def holds_problem(self, row: Row) -> bool:
        """Say whether it is kept already: after an interrupt the rounds before are shown again."""
        return row in self._folder.rows(self._problems)
