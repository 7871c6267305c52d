"""Runs cells on a Ray cluster: a task is a cell, with the same folder and the same numbers as on this machine.

Ray itself sends tasks and results as pickles, and its ports ask nobody who they are: whoever reaches them runs code on the
cluster. Keep it in a network of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing

from fedleak.errors import FedleakError, told
from fedleak.printable import quiet_log
from fedleak.process import cluster
from fedleak.process.pool import Watcher
from fedleak.sweeps.cell import Job, run_cell


class Cluster:
    """Ray tasks for a list of cells, one CPU each.

    Parameters
    ----------
    address : str
        As for :class:`fedleak.process.cluster.Cluster`.
    workers : int, optional
        At most so many tasks at a time; as many as the cluster has CPUs by default.
    """

    def __init__(self, address: str, workers: int | None = None) -> None:
        self._address = address
        self._most = workers

    def run(self, jobs: Iterable[Job], watcher: Watcher) -> None:
        """Run all jobs; as :meth:`fedleak.process.pool.Pool.run`.

        Raises
        ------
        ScenarioError
            If there is no cluster at the address.
        """
        with cluster.Cluster[str](self._address, self._most) as ray:
            asked = ((job.name, lambda job=job: (job.to_json(),)) for job in jobs)
            with closing(ray.run(_task, asked, lambda name: watcher.at(name, "on Ray"))) as answers:
                for name, answer in answers:
                    watcher.done(name, answer.reason if isinstance(answer, cluster.Lost) else answer)


def _task(text: str) -> str | None:
    """Run one cell; return why it failed, or nothing."""
    quiet_log()
    try:
        run_cell(Job.from_json(text))
    except FedleakError as error:
        return str(error)
    except KeyboardInterrupt:
        raise
    # One cell must not end the others, whatever its plugins raise; the reason becomes its row.
    except BaseException as error:  # noqa: BLE001
        return told(error)
    return None
