"""Ray tasks for a list of jobs: as many at a time as the cluster has room for, each result as it comes."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from fedleak.errors import FedleakError, ScenarioError
from fedleak.printable import one_line
from fedleak.process.descendants import nothing_left_of_a_broken_start

_PATIENCE = 10.0  # seconds to wait for a cluster's head to answer
_AHEAD = 1  # tasks that wait at the cluster for a free place, so that none is idle while the driver takes a result
_LONGEST = 300  # characters of the reason why a task gave nothing
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Key = TypeVar("Key")


@dataclass(frozen=True)
class Lost:
    """What came in place of a result.

    Attributes
    ----------
    reason : str
        Why, in one line: what the task raised, or what became of its worker.
    """

    reason: str


@dataclass(frozen=True)
class Need:
    """What one task takes up.

    Attributes
    ----------
    cpus : float
        Logical cores.
    gpus : float
        GPUs; a task with a part of one sees that one alone, as ``"cuda"``.
    """

    cpus: float = 1
    gpus: float = 0


class Cluster(Generic[Key]):
    """A Ray cluster, connected to inside the ``with`` block.

    Parameters
    ----------
    address : str
        ``"auto"`` for the cluster that this machine belongs to, ``"local"`` to start one here, or ``"HOST:PORT"``. Where
        this process is connected already, that cluster is used, and stays connected.
    most : int, optional
        At most so many tasks at a time; as many as there is room for by default.
    need : Need
        Of each task.

    Raises
    ------
    ScenarioError
        On entering, if there is no cluster at the address, or it has no room for one task.
    """

    def __init__(self, address: str, most: int | None = None, need: Need | None = None) -> None:
        self._address, self._most, self._need = address, most, need or Need()
        self._connected_here = False

    def __enter__(self) -> Self:
        import ray

        self._connected_here = not ray.is_initialized()
        if self._connected_here:
            connect(self._address)
        try:
            self._check_room()
        except ScenarioError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        import ray

        if self._connected_here:
            ray.shutdown()

    def share(self, value: Any) -> Any:
        """Put a value where all tasks can read it; as an argument of a job the task is given the value itself."""
        import ray

        return ray.put(value)

    def run(
        self,
        function: Callable[..., Any],
        jobs: Iterable[tuple[Key, Callable[[], tuple[Any, ...]]]],
        on_start: Callable[[Key], None] = lambda key: None,
    ) -> Generator[tuple[Key, Any | Lost], None, None]:
        """Call ``function`` for every job, and yield what each returned, or how it was lost, as it comes.

        Closed early, as on an interrupt, it ends the tasks that run: use it within ``contextlib.closing``.

        Parameters
        ----------
        function : callable
            Found by its name in the workers, so of a module that they can import.
        jobs : iterable of (key, callable)
            What to call each result by, and what returns the arguments: asked only when there is room for the task.
        on_start : callable
            Told the key of each job that is handed to the cluster.
        """
        import ray

        # A task that died with its machine is asked for again.
        task = ray.remote(num_cpus=self._need.cpus, num_gpus=self._need.gpus, max_retries=1)(call)
        here, waiting, running = str(Path.cwd()), iter(jobs), dict[Any, Key]()
        try:
            while True:
                for key, arguments in islice(waiting, max(0, self._room() - len(running))):
                    running[task.remote(here, function, *arguments())] = key
                    on_start(key)
                if not running:
                    return
                [ready], _ = ray.wait(list(running), num_returns=1)
                key = running.pop(ready)
                try:
                    answer = ray.get(ready)
                except ray.exceptions.RayError as error:
                    answer = Lost(_reason(error))
                del ready  # or the store would hold the result for as long as this generator rests
                yield key, answer
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    def _room(self) -> int:
        return self._most or self._places() + _AHEAD

    def _places(self) -> int:
        """Return how many tasks fit, node by node, of the cluster as it is now."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        asked = [("CPU", self._need.cpus), ("GPU", self._need.gpus)]
        return sum(min(int(has.get(name, 0) / wanted) for name, wanted in asked if wanted) for has in nodes)

    def _check_room(self) -> None:
        if not self._places():
            gpus = f" and {self._need.gpus:g} GPU(s)" if self._need.gpus else ""
            fewer = ["lower --threads"] if self._need.cpus > 1 else []  # else it was not asked for, or cannot be lower
            advice = ", or ".join(["add such a node", *fewer, *(["use --device cpu"] if gpus else [])])
            raise ScenarioError(
                f"--ray {self._address}: no node of the cluster has the {self._need.cpus:g} CPU(s){gpus} that one task takes; "
                f"{advice}"
            )


def connect(address: str, given: str = "--ray ") -> None:
    """Connect this process to a Ray cluster, or start one on this machine; end it with ``ray.shutdown()``.

    Workers import what this process can import, and compute on one thread where nobody says otherwise.

    Parameters
    ----------
    address : str
        As for :class:`Cluster`.
    given : str
        How it was given, for the message.

    Raises
    ------
    ScenarioError
        If there is no cluster at the address.
    """
    import ray

    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    try:
        _knock(address)
        with nothing_left_of_a_broken_start():
            ray.init(
                address=address,
                include_dashboard=False if address == "local" else None,
                runtime_env={"env_vars": {**_ONE_THREAD, "PYTHONPATH": path}},
                logging_level=logging.ERROR,
                log_to_driver=False,
                configure_logging=False,
            )
    except (OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise ScenarioError(
            f"{given}{address}: no Ray cluster there ({said}); start one with `ray start --head`, or use {given}local"
        ) from error


def call(directory: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``function`` in a worker, in the directory where the work was started, if there is one of that name."""
    if Path(directory).is_dir():  # so that a relative path means what it does there
        os.chdir(directory)
    return function(*arguments)


def _knock(address: str) -> None:
    """Raise ``OSError`` if nobody answers at HOST:PORT, which Ray would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()


def _reason(error: Exception) -> str:
    """Say in one line why there is no result."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, FedleakError):
        return one_line(cause, _LONGEST)
    if isinstance(cause, BaseException):
        return one_line(f"{type(cause).__name__}: {cause}", _LONGEST)
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return one_line(f"Ray could not run it: {first}", _LONGEST)
