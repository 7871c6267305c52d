"""The Flower ServerApp: what `flwr run` and a SuperLink start; it runs the scenario in the federation that it finds itself in.

From the run configuration: ``scenario`` (JSON, or the path of a TOML file), ``out`` (name of the run folder, or an
absolute path), ``resume`` (a run folder to go on with), ``device``, ``threads`` and ``allow-code`` (whether what the scenario
names as ``package.module:name`` may be imported, and so run; by default not). The clients' secret does not belong there: a
server could read it (:func:`fedleak.client.mod.scenario_of` says where clients find it). From the environment of the process:
``FEDLEAK_RUNS``, the folder that takes run folders (``runs`` by default), and ``FEDLEAK_SERVER_DATA``, the folder
``server`` that `fedleak deploy shards` wrote; without it the server opens the scenario's own data.

What happens is told in the log, one line of JSON an event, so that who submitted the run can follow it from anywhere.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedleak.engines.base import Serve
from fedleak.errors import FedleakError, ScenarioError
from fedleak.events import MARK, Event
from fedleak.printable import clean_log
from fedleak.scenario.code import check_allowed
from fedleak.scenario.schema import Scenario, scenario_from
from fedleak.wire.grid import OrderedGrid, is_simulated

_POLL = 0.5  # seconds between two looks for replies at a SuperLink
_PATIENCE = 300.0  # seconds that all clients are given to connect and to say which partition they hold
_SHOWN = ("modality", "metrics", "cpu_seconds", "error")  # of a row, all that the terminal shows

app = ServerApp()


class Joined:
    """The federation that this ServerApp was started in.

    Parameters
    ----------
    grid : Grid
        Reaches its nodes.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def run(self, scenario: Scenario, serve: Serve) -> None:
        """Call ``serve`` with the nodes in the order of their partitions."""
        federation = scenario.federation
        ordered = OrderedGrid(self._grid, federation.clients, federation.timeout, poll=_POLL, patience=_PATIENCE)
        serve(ordered, ordered.directory)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario, and tell in the log how it went.

    Raises
    ------
    FedleakError
        If the run could not start or broke off: Flower then calls the run failed.
    """
    from fedleak.experiment import run as experiment

    clean_log()
    config = context.run_config
    try:
        scenario, options = _asked(config, "ray" if is_simulated(grid) else "deployment")
        result = experiment.run(
            scenario,
            **options,
            device=str(config.get("device", "auto")),
            threads=int(config.get("threads", 1)),
            listener=tell,
            on_start=lambda path: tell(Event("started", {"path": str(path.resolve())})),
            where=Joined(grid),
        )
    except FedleakError as error:
        kind = "refused" if isinstance(error, ScenarioError) else "failed"
        tell(Event(kind, {"message": str(error)}))
        raise
    sys.stdout.write(f"Report: {result.report.resolve()}\n")
    tell(Event("finished", {"path": str(result.path.resolve()), "summary": result.summary}))


def tell(event: Event) -> None:
    """Write an event into the log, as one line."""
    if event.kind == "progress":
        return
    facts: dict[str, Any] = dict(event.facts)
    if "rows" in facts:
        facts["rows"] = [{key: row[key] for key in _SHOWN} for row in facts["rows"]]
    # In one piece: Flower passes on each write by itself.
    sys.stdout.write(f"{MARK}{json.dumps({'kind': event.kind, 'facts': facts})}\n")


def _asked(config: Any, engine: str) -> tuple[Scenario, dict[str, Any]]:
    resume, out = str(config.get("resume", "")), str(config.get("out", ""))
    runs = Path(os.environ.get("FEDLEAK_RUNS", "runs"))
    # Who submits a scenario sends its fingerprint; a file or JSON by hand may hold the clients' secret, of which nothing is kept.
    scenario = scenario_from(str(config.get("scenario", ""))).public
    if "scenario" in config:
        config["scenario"] = scenario.to_json()
    check_allowed(scenario, config)
    if resume:
        from fedleak.runs.folder import RunFolder

        folder = runs / resume
        earlier = RunFolder.open(folder).scenario
        # The clients train by what was submitted, not by what the folder holds.
        if earlier.digest != scenario.digest:
            raise ScenarioError(f"resume: {folder} is the folder of another scenario than the one submitted; submit its own")
        return earlier, {"resume": folder}
    if ".." in Path(out).parts:
        raise ScenarioError(f"out: '{out}' leads out of the folder of runs; give a name, or an absolute path")
    own = os.environ.get("FEDLEAK_SERVER_DATA")
    federation = scenario.federation.model_copy(update={"engine": engine, "client_resources": None})
    data = scenario.data.model_copy(update={"shard": Path(own)}) if own else scenario.data
    scenario = scenario.model_copy(update={"federation": federation, "data": data})
    from fedleak.experiment.manifest import default_folder

    return scenario, {"out": runs / (out or default_folder(scenario).name)}
