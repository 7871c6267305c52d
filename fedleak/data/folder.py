"""The checks that all sources with files of the user's share."""

from __future__ import annotations

from pathlib import Path

from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data


def required_folder(data: Data, expected: str) -> Path:
    """Return ``data.path`` if it is a folder.

    Parameters
    ----------
    data : Data
        The scenario's ``[data]`` table.
    expected : str
        What the folder should hold, for the message.

    Raises
    ------
    ScenarioError
        If the path is not given, does not exist or is a file.
    """
    if data.path is None:
        raise ScenarioError(f"data.path: data.source '{data.source}' needs it; give a folder with {expected}")
    path = data.path.expanduser()
    if not path.is_dir():
        came = "is a file" if path.exists() else "no such folder"
        raise ScenarioError(f"data.path: {path}: {came}; expected a folder with {expected}")
    return path
