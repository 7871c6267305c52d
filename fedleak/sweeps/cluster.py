"""Runs cells on a Ray cluster: a task is a cell, with the same folder and the same numbers as on this machine.

Ray itself sends tasks and results as pickles, and its ports ask nobody who they are: whoever reaches them runs code on the
cluster. Keep it in a network of its own.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedleak.errors import FedleakError, ScenarioError
from fedleak.sweeps.cell import Job, run_cell
from fedleak.sweeps.pool import Watcher

_PATIENCE = 10.0  # seconds to wait for a cluster's head to answer
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Cluster:
    """Ray tasks for a list of jobs, one CPU each.

    Parameters
    ----------
    address : str
        ``"auto"`` for the cluster that this machine belongs to, ``"local"`` to start one here, or ``"HOST:PORT"``.
    workers : int, optional
        At most so many tasks at a time; as many as the cluster has CPUs by default.
    """

    def __init__(self, address: str, workers: int | None = None) -> None:
        self._address = address
        self._most = workers

    def run(self, jobs: Iterable[Job], watcher: Watcher) -> None:
        """Run all jobs; as :meth:`fedleak.sweeps.pool.Pool.run`.

        Raises
        ------
        ScenarioError
            If there is no cluster at the address.
        """
        import ray

        started_here = not ray.is_initialized()
        if started_here:
            self._connect()
        try:
            self._run(list(jobs), watcher)
        finally:
            if started_here:
                ray.shutdown()

    def _connect(self) -> None:
        import ray

        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        try:
            _knock(self._address)
            ray.init(
                address=self._address,
                include_dashboard=False if self._address == "local" else None,
                runtime_env={"env_vars": {**_ONE_THREAD, "PYTHONPATH": path}},
                logging_level=logging.ERROR,
                log_to_driver=False,
                configure_logging=False,
            )
        except (OSError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())
            raise ScenarioError(
                f"--ray {self._address}: no Ray cluster there ({said}); start one with `ray start --head`, or use --ray local"
            ) from error

    def _run(self, jobs: list[Job], watcher: Watcher) -> None:
        import ray

        most = self._most or max(1, int(ray.cluster_resources().get("CPU", 1)))
        # A task that died with its machine is asked for again: what it left goes on.
        task = ray.remote(num_cpus=1, max_retries=1)(_task)
        waiting, running = list(reversed(jobs)), dict[Any, Job]()
        while waiting or running:
            while waiting and len(running) < most:
                job = waiting.pop()
                running[task.remote(job.to_json(), str(Path.cwd()))] = job
                watcher.at(job.name, "on Ray")
            [ready], _ = ray.wait(list(running), num_returns=1)
            job = running.pop(ready)
            try:
                error: str | None = ray.get(ready)
            except ray.exceptions.RayError as failure:
                error = f"Ray could not run it: {next(iter(str(failure).splitlines()), type(failure).__name__)}"
            watcher.done(job.name, error)


def _knock(address: str) -> None:
    """Raise ``OSError`` if nobody answers at HOST:PORT, which Ray would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()


def _task(text: str, directory: str) -> str | None:
    """Run one cell; return why it failed, or nothing."""
    if Path(directory).is_dir():  # so that a relative data.path means what it does where the sweep was started
        os.chdir(directory)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    try:
        run_cell(Job.from_json(text))
    except FedleakError as error:
        return str(error)
    # One cell must not end the others, whatever its plugins raise; the reason becomes its row.
    except Exception as error:  # noqa: BLE001
        return f"{type(error).__name__}: {error}"
    return None
