"""Where the orders of an attack that is spread are done: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from fedleak.again.orders import Order, fulfil, work_on_ray
from fedleak.attacks.base import Attack
from fedleak.observation import Observation
from fedleak.printable import one_line
from fedleak.process.cluster import Cluster, Lost, Need
from fedleak.process.pool import Watcher
from fedleak.runs.folder import RunFolder
from fedleak.sandbox.apart import Apart
from fedleak.sandbox.packing import Unpacked
from fedleak.scenario.schema import AttackSpec

PLACE, SHARED = "again", "shared.safetensors"
"""Folder within the run folder, and its file, of what all orders share."""


class Runner(Protocol):
    """Does orders somewhere, and leaves their results in the run folder."""

    def run(self, orders: Sequence[Order], folder: RunFolder, watcher: Watcher) -> None:
        """Do all orders, in any sequence; whatever becomes of one is told, not raised."""


class OnCores:
    """Processes of this machine, which need see neither the run folder nor the data.

    Parameters
    ----------
    jobs : int
        How many at a time.
    threads : int
        Of each one's computations.
    device : str
        Where they compute.
    """

    def __init__(self, jobs: int, threads: int, device: str) -> None:
        self._jobs, self._threads, self._device = jobs, threads, device

    def run(self, orders: Sequence[Order], folder: RunFolder, watcher: Watcher) -> None:
        """Do all orders; an interrupt ends the processes at once."""
        shared = (folder.path / PLACE / SHARED).read_bytes()
        unpacked = Unpacked(shared)
        attacks, server = unpacked.attacks(), unpacked.scenario.server
        limits: dict[str, Any] = {"limit": server.attack_limit, "memory": server.attack_memory}
        waiting, told = deque(orders), queue.SimpleQueue[_Told]()
        crews = [
            Apart(attacks, lambda: shared, device=self._device, threads=self._threads, **limits)
            for _ in range(min(self._jobs, len(orders)))
        ]

        def work(apart: Apart) -> None:
            while waiting:
                with suppress(IndexError):  # another took the last
                    order = waiting.popleft()
                    told.put(_Told(order.name))
                    told.put(_done(order, unpacked.scenario.attacks[order.attack], attacks[order.attack], apart, folder))

        threads = [threading.Thread(target=work, args=(apart,), name="orders", daemon=True) for apart in crews]
        try:
            for thread in threads:
                thread.start()
            left = len(orders)
            while left:
                one = told.get()
                if one.content is None and one.error is None:
                    watcher.at(one.name, "running")
                    continue
                if one.content is not None:
                    folder.replace_file(f"{PLACE}/{one.name}.safetensors", one.content)
                watcher.done(one.name, one.error)
                left -= 1
        finally:
            waiting.clear()
            for apart in crews:
                apart.close()


@dataclass(frozen=True)
class _Told:
    """What a thread says of an order: that it has begun, what it gave, or why it gave nothing."""

    name: str
    content: bytes | None = None
    error: str | None = None


def _done(order: Order, spec: AttackSpec, attack: Attack, apart: Apart, folder: RunFolder) -> _Told:
    try:
        apart.begin()
        content = fulfil(order, spec, attack, apart, lambda name: Observation.load(folder.path / "captures" / name))
    # One order must not end the others, nor a thread in which none would be heard of; the reason becomes its rows.
    except BaseException as error:  # noqa: BLE001
        return _Told(order.name, error=one_line(f"{type(error).__name__}: {error}"))
    # What a process gave that died is not kept: the same command tries it again.
    return _Told(order.name, content) if apart.death is None else _Told(order.name, error=apart.death)


class OnRay:
    """Tasks on a Ray cluster, whose machines need see neither the run folder nor the data.

    Parameters
    ----------
    cluster : Cluster
        Connected to.
    """

    def __init__(self, cluster: Cluster[str]) -> None:
        self._cluster = cluster

    def run(self, orders: Sequence[Order], folder: RunFolder, watcher: Watcher) -> None:
        """Do all orders."""
        share = self._cluster.share
        shared = share((folder.path / PLACE / SHARED).read_bytes())

        def arguments(order: Order) -> tuple[Any, ...]:
            names = {name for step in order.steps for name in step.captures}
            return order.to_json(), shared, {name: share((folder.path / "captures" / name).read_bytes()) for name in names}

        jobs = ((order.name, partial(arguments, order)) for order in orders)
        with closing(self._cluster.run(work_on_ray, jobs, lambda name: watcher.at(name, "on Ray"))) as answers:
            for name, answer in answers:
                if isinstance(answer, Lost):
                    watcher.done(name, answer.reason)
                else:
                    folder.replace_file(f"{PLACE}/{name}.safetensors", answer)
                    watcher.done(name, None)


@contextmanager
def runner_for(*, jobs: int | None, ray: str | None, threads: int, device: str) -> Iterator[Runner | None]:
    """Hold what does the orders; ``None`` if nothing is to be spread.

    Parameters
    ----------
    jobs : int, optional
        How many orders at a time; without ``ray``, each in a process of this machine.
    ray : str, optional
        Address of the cluster, as for :class:`fedleak.process.cluster.Cluster`.
    threads : int
        Of each order's computations; on Ray it takes as many CPUs.
    device : str
        Where they compute; on Ray, ``"cuda"`` gives each order one GPU of the cluster, which is untested.

    Raises
    ------
    ScenarioError
        If there is no such cluster.
    """
    if ray is not None:
        with Cluster[str](ray, jobs, Need(threads, 1 if device == "cuda" else 0)) as cluster:
            yield OnRay(cluster)
    else:
        yield OnCores(jobs, threads, device) if jobs is not None else None
