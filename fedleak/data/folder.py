"""The checks that all sources with files of the user's share: what is refused is named, with the way that reads it."""

from __future__ import annotations

from pathlib import Path

from fedleak.data.formats import known_format
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
    path = required_path(data, f"a folder with {expected}")
    if not path.is_dir():
        raise ScenarioError(f"data.path: {path}: is a file; expected a folder with {expected}{_hint(data, path)}")
    return path


def required_path(data: Data, expected: str) -> Path:
    """Return ``data.path`` if it is a file or a folder.

    Raises
    ------
    ScenarioError
        If the path is not given, or does not exist.
    """
    if data.path is None:
        raise ScenarioError(f"data.path: data.source '{data.source}' needs it; give {expected}")
    path = data.path.expanduser()
    if not path.exists():
        raise ScenarioError(
            f"data.path: {path}: no such {'folder' if expected.startswith('a folder') else 'file'}; expected {expected}"
        )
    return path


def nothing_found(data: Data, path: Path, problem: str, expected: str) -> ScenarioError:
    """Return the refusal of a path that does not hold what the source reads, with what it holds instead.

    Parameters
    ----------
    data : Data
        The scenario's ``[data]`` table.
    path : Path
        What was looked into.
    problem : str
        Such as ``"no class folder in it"``.
    expected : str
        What the source reads.
    """
    return ScenarioError(f"data.path: {path}: {problem}; expected {expected}{_hint(data, path)}")


def _hint(data: Data, path: Path) -> str:
    """Return which source reads what lies at ``path``, or what it is; empty where neither is known."""
    from fedleak.data.base import sources

    for name in sources.names():
        if name != data.source and sources.get(name).recognises(path):
            return f"; data.source = '{name}' reads what is there"
    found = known_format(path)
    return f"; {found}" if found else ""
