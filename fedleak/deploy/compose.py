"""The file of a federation in containers, for any number of clients: ``docker-compose.yml``, and ``.env`` with its settings.

The project's own files are what this writes for eight clients, two of which run unless more are asked for.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Scenario

COMPOSE, SETTINGS = "docker-compose.yml", ".env"
RUNNING = 2  # of the file's clients, where .env does not say
_PLAIN = re.compile(r"[A-Za-z0-9_./+-]+")


def compose_text(scenario: str, clients: int) -> str:
    """Return the compose file.

    Parameters
    ----------
    scenario : str
        Path of the scenario that runs by default, from the file's folder.
    clients : int
        How many services of clients it has.
    """
    return _rendered(COMPOSE, scenario=scenario, data=_folder(scenario), clients=clients, running=min(RUNNING, clients))


def settings_text(
    scenario: str, clients: int, running: int, *, data: str | None = None, options: str = "", user: int = 1000, group: int = 1000
) -> str:
    """Return the file of settings.

    Parameters
    ----------
    scenario, clients
        As for :func:`compose_text`.
    running : int
        How many clients take part.
    data : str, optional
        Folder that the scenario reads as ``/data``; by default the scenario's own.
    options : str
        More options of the commands, quoted as the file needs it.
    user, group : int
        Who owns the run folders.
    """
    found = {"data": data or _folder(scenario), "options": options, "user": user, "group": group}
    return _rendered("env", scenario=scenario, clients=clients, running=running, **found)


def write_compose(path: Path, scenario: Scenario, clients: int, out: Path) -> list[Path]:
    """Write both files for a scenario; all clients take part.

    Parameters
    ----------
    path : Path
        The scenario's file.
    scenario : Scenario
        What it holds.
    clients : int
        How many.
    out : Path
        Folder to write into.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    ScenarioError
        If one exists or cannot be written, or a path has characters that compose reads as something else.
    """
    files = [out / COMPOSE, out / SETTINGS]
    for file in files:
        if file.exists():
            raise ScenarioError(f"{file}: exists already; choose another --out, or remove it")
    place = _plain(os.path.relpath(path.absolute(), out.absolute()))
    options, data = "", None
    if scenario.data.path is not None:
        images = scenario.data.path.expanduser().absolute()
        data = _plain(str(images if images.is_dir() else images.parent))
        inside = "/data" if images.is_dir() else f"/data/{_plain(images.name)}"
        options = f'"--set \'data.path=\\"{inside}\\"\'"'
    settings: dict[str, Any] = {"data": data, "options": options, "user": _id("getuid"), "group": _id("getgid")}
    texts = [compose_text(place, clients), settings_text(place, clients, clients, **settings)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file, text in zip(files, texts, strict=True):
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ScenarioError(f"{error.filename}: cannot be written ({error.strerror})") from error
    return files


def _id(call: str) -> int:
    return int(getattr(os, call)()) if hasattr(os, call) else 1000  # Windows has none; containers have


def _folder(scenario: str) -> str:
    return str(Path(scenario).parent)


def _plain(path: str) -> str:
    if not _PLAIN.fullmatch(path):
        raise ScenarioError(f"{path}: has characters that compose reads in its own way; expected letters, digits and _ . / + -")
    return path


def _rendered(name: str, **values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fedleak.deploy"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # no page
    )
    return environment.get_template(f"{name}.j2").render(**values)
