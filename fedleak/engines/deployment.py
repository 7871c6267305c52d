"""Run a scenario on a SuperLink that already runs: submit it, follow it, and hand back what it left.

The server's side, with the attack, runs where the SuperLink starts its apps, and the run folder is written there.
Where that is this machine, the folder is the same as that of every other engine; otherwise the summary comes back
through the log. What counts is the summary alone: Flower calls a run without a single good reply a success.
"""

from __future__ import annotations

import ipaddress
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedleak.engines.superlink import Control
from fedleak.errors import FedleakError, ScenarioError
from fedleak.events import MARK, Event, Listener, silent
from fedleak.runs.folder import Row
from fedleak.scenario.schema import Scenario

_LAST_LINES = 12  # of the log, shown when a run ends without a word


@dataclass(frozen=True)
class Deployed:
    """What a deployed run left.

    Attributes
    ----------
    path : Path
        The run folder, on the machine where the server's app ran.
    summary : dict
        The content of its ``summary.json``.
    here : bool
        Whether that is this machine.
    """

    path: Path
    summary: Row
    here: bool


def deploy(
    scenario: Scenario,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    device: str = "auto",
    threads: int = 1,
    listener: Listener = silent,
    on_start: Callable[[Path], None] | None = None,
) -> Deployed:
    """Submit a scenario to its SuperLink, and wait for the end.

    Parameters
    ----------
    scenario : Scenario
        ``federation.superlink`` says where.
    out : str or Path, optional
        The run folder to make. To a SuperLink on this machine, as for any engine; to another, a name in the server's
        folder of runs, or an absolute path there.
    resume : str or Path, optional
        A run folder to go on with, likewise.
    device, threads : str, int
        Of the server's attacks.
    listener, on_start
        Told what happens, and where the run folder is.

    Raises
    ------
    ScenarioError
        If the server refused the scenario; nothing has started then.
    FedleakError
        If the SuperLink cannot be reached, or the run broke off.
    KeyboardInterrupt
        As it came; the run is stopped.
    """
    superlink = scenario.federation.superlink
    if superlink is None:
        raise ScenarioError(
            "federation.superlink: engine 'deployment' needs the address of a SuperLink that runs, and the certificate of its "
            'authority, such as: superlink = {address = "127.0.0.1:8000", root_certificates = "deployment/ca.crt"}; '
            "`fedleak deploy up` starts one"
        )
    local = _is_loopback(superlink.address)
    # Who asks for this scenario has answered for the code that it names.
    config: dict[str, str | int | bool] = {
        "scenario": scenario.public.to_json(),
        "device": device,
        "threads": threads,
        "allow-code": True,
    }
    for key, place in (("out", out), ("resume", resume)):
        if place is not None:
            config[key] = str(Path(place).resolve() if local else place)
    control = Control(superlink)
    run_id = None
    told = _Told(listener, on_start)
    try:
        run_id = control.start(config)
        for line in control.logs(run_id):
            told.hear(line)
    except KeyboardInterrupt:
        if run_id is not None and not control.finished(run_id):
            control.stop(run_id)
        raise
    finally:
        control.close()
    return told.outcome()


class _Told:
    """What the log of a run says, line by line."""

    def __init__(self, listener: Listener, on_start: Callable[[Path], None] | None) -> None:
        self._listener, self._on_start = listener, on_start
        self._end: Event | None = None
        self._path: Path | None = None
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)

    def hear(self, line: str) -> None:
        """Take a line."""
        _, mark, text = line.partition(MARK)
        event = _event(text) if mark else None
        if event is None:
            if line.strip():
                self._lines.append(line.strip())
        elif event.kind == "started":
            self._path = Path(event.facts["path"])
            if self._on_start is not None:
                self._on_start(self._path)
        elif event.kind in ("finished", "failed", "refused"):
            self._end = event
        else:
            self._listener(event)

    def outcome(self) -> Deployed:
        """Return how the run ended, or raise it."""
        if self._end is None:
            where = f" What it did is kept in {self._path}, where it ran." if self._path else ""
            raise FedleakError(
                f"the run ended without a result: it was stopped, or its server could not start.{where} "
                f"The end of its log: {' / '.join(self._lines) or 'nothing'}"
            )
        if self._end.kind != "finished":
            message = self._end.facts["message"]
            raise ScenarioError(message) if self._end.kind == "refused" else FedleakError(message)
        path, summary = Path(self._end.facts["path"]), self._end.facts["summary"]
        return Deployed(path, summary, _same(path / "summary.json", summary))


def _event(text: str) -> Event | None:
    try:
        content: Any = json.loads(text)
        return Event(str(content["kind"]), dict(content["facts"]))
    except (ValueError, KeyError, TypeError):
        return None  # somebody else's line that only looks like one


def _same(path: Path, summary: Row) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == summary)
    except (OSError, ValueError):
        return False


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
