"""Flower's simulation engine: clients run in Ray actors, spread over the cores and GPUs of a machine or a cluster.

Each actor takes ``federation.client_resources``, by default one core. An actor with a share of a GPU sees that GPU alone, as
``cuda``, on which the client then trains (``local.device = "cuda"``); nothing keeps those who share one to their share of its
memory. That is Ray's way and untested here, on machines without a GPU; shares of cores are tested.

Ray passes messages between its own processes as pickles: keep a cluster's ports from those who may not run code on it.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, RecordDict
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.serverapp import Grid, ServerApp
from flwr.simulation.run_simulation import _run_simulation
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supercore.telemetry import EventType

from fedleak.client.app import app as client_app
from fedleak.engines.base import Serve
from fedleak.engines.room import check_room, ray_address
from fedleak.errors import FedleakError
from fedleak.process.descendants import nothing_left_of_a_broken_start
from fedleak.scenario.schema import ClientResources, Scenario
from fedleak.secagg.client import SecuredApp
from fedleak.wire.grid import OrderedGrid

_RUN_ID = 1
# Flower reads the clients' run_config from the app folder's pyproject.toml, in which every overridden key must exist.
_PYPROJECT = """\
[project]
name = "fedleak-run"
version = "0"
[tool.flwr.app]
publisher = "fedleak"
[tool.flwr.app.components]
serverapp = "fedleak.server.app:app"
clientapp = "fedleak.apps.clientapp:app"
[tool.flwr.app.config]
scenario = ""
"""
_PATIENCE = 20.0  # seconds that the server's thread is given to end after an interrupt


class Ray:
    """Run clients in Ray actors: on the cluster in ``RAY_ADDRESS``, or on one that is started on this machine."""

    def run(self, scenario: Scenario, serve: Serve) -> None:
        """Call ``serve``, in a thread of this process, with a grid to the actors."""
        import ray

        started_here = not ray.is_initialized()
        python_path = os.environ.get("PYTHONPATH")
        stop, ended = threading.Event(), threading.Event()
        failure: list[BaseException] = []
        resources = scenario.federation.client_resources or ClientResources()
        ended.set()  # until the server's thread is started
        try:
            if started_here:
                # Actors import what this process can import, such as the user's own model module.
                os.environ["PYTHONPATH"] = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
                with nothing_left_of_a_broken_start():
                    ray.init(
                        address=ray_address(),
                        include_dashboard=False,
                        logging_level=logging.ERROR,
                        log_to_driver=False,
                        configure_logging=False,
                    )
            check_room(resources)  # of the nodes as they are now
            ended.clear()
            with tempfile.TemporaryDirectory() as folder:
                self._simulate(scenario, _watched(scenario, serve, stop, ended, failure), Path(folder), resources)
        except (RuntimeError, OSError) as error:
            failure.append(FedleakError(f"Flower's simulation engine failed: {error.__cause__ or error}"))
        finally:
            stop.set()
            ended.wait(_PATIENCE)
            if started_here:
                ray.shutdown()
                os.environ.pop("PYTHONPATH", None)
                if python_path is not None:
                    os.environ["PYTHONPATH"] = python_path
        if failure:
            raise failure[0]

    def _simulate(
        self, scenario: Scenario, main: Callable[[Grid, Context], None], folder: Path, resources: ClientResources
    ) -> None:
        (folder / "pyproject.toml").write_text(_PYPROJECT, encoding="utf-8")
        server_app = ServerApp()
        server_app.main()(main)
        run = Run.create_empty(run_id=_RUN_ID)
        run.primary_task_id, run.federation_id = _RUN_ID, NOOP_FEDERATION_ID
        run.override_config = {"scenario": scenario.to_json()}
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = _RUN_ID
        _run_simulation(
            num_supernodes=scenario.federation.clients,
            server_app=server_app,
            client_app=SecuredApp(client_app),
            app_dir=str(folder),
            is_app=True,
            run=run,
            server_app_context=Context(run_id=_RUN_ID, node_id=0, node_config={}, state=RecordDict(), run_config={}),
            backend_config={"client_resources": resources.model_dump()},
            exit_event=EventType.PYTHON_API_RUN_SIMULATION_LEAVE,
        )


def _partitions(grid: Grid) -> dict[int, int]:
    """Return which partition each of Flower's simulated nodes holds, by node id; but not of the first two.

    Asking takes 10 ms of CPU a node, half a minute for 4,000. Flower numbers its nodes in the order in which it makes them. The
    first two are asked all the same: in another order they would not hold 0 and 1, which the directory refuses.
    """
    state = getattr(grid, "state", None)
    nodes = list(state.nodes) if isinstance(state, InMemoryLinkState) else []
    return dict(zip(nodes[2:], range(2, len(nodes)), strict=True))


def _watched(
    scenario: Scenario, serve: Serve, stop: threading.Event, ended: threading.Event, failure: list[BaseException]
) -> Callable[[Grid, Context], None]:
    """Return the ServerApp's main function: it runs in a thread, keeps what it raised, and says when it has ended."""

    def main(grid: Grid, context: Context) -> None:
        try:
            ordered = OrderedGrid(
                grid, scenario.federation.clients, scenario.federation.timeout, stop, known=lambda: _partitions(grid)
            )
            serve(ordered, ordered.directory)
        # Flower logs and hides what a ServerApp raises; keep it, to raise it where the run was asked for.
        except BaseException as error:  # noqa: BLE001
            failure.append(error)
        finally:
            ended.set()

    return main
