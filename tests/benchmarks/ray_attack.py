"""Time ``fedleak attack`` in one process and on a Ray cluster of two nodes with one CPU each: 32 captures, one thread.

    python tests/benchmarks/ray_attack.py [REPEATS] [ITERATIONS]

Four clients, eight rounds, LeNet, 16-pixel samples; inverting-gradients, one update at a time. Each time is that of the whole
command, imports, connection, grading and report included; the cluster is up before. The two take turns, and after each pair the
rows and images are compared bit by bit. Run it on two idle cores: where others use them too the ratio of wall times says little,
which is why the load (processes that want to run, over the last minute, the measured ones included) is printed beside it, and a
ratio of CPU seconds: of the one process, over those of the driver and of one node's workers (the mean of the two) together, as if
the driver never worked while they do.

found on two idle cores, seconds of the whole command:

    command                one process   two nodes   ratio
    ray_attack.py 2 1000          94.8        53.8     1.8
                                  90.4        59.7     1.5
    ray_attack.py 1 1500         140.6        82.8     1.7
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

from ray.cluster_utils import Cluster

from fedleak.experiment import run as api
from fedleak.scenario.schema import parse_scenario

SCENARIO = {
    "name": "thirty-two",
    "secret": "7a3e0b9d5c6f4128a1d9e4f7b2c80563",
    "data": {"source": "samples", "image_size": 16},
    "model": {"name": "lenet"},
    "federation": {"clients": 4, "rounds": 8},
}
CLOCKS = {"seconds", "cpu_seconds"}


def seconds(folder: Path, iterations: int, *more: str) -> tuple[float, float]:
    """Return wall seconds of the command, and CPU seconds of its own process."""
    words = ["--attack", "inverting-gradients", "--set", "together=1", "--set", f"iterations={iterations}"]
    command = [sys.executable, "-m", "fedleak", "attack", str(folder), *words, "--device", "cpu", "--quiet", *more]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **threads})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begun, spent


class Workers:
    """Watch the CPU seconds of the workers of each node, while the block runs."""

    def __init__(self, cluster: Cluster) -> None:
        self._raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()]
        self._spent: dict[int, tuple[int, float]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def each(self) -> float:
        """CPU seconds of the workers of a node, the mean over the nodes."""
        return sum(spent for _, spent in self._spent.values()) / len(self._raylets)

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            for place in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):  # it may have ended
                    fields = (place / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[1]) in self._raylets and (place / "cmdline").read_bytes().startswith(b"ray::"):
                        ticks = int(fields[11]) + int(fields[12])
                        self._spent[int(place.name)] = int(fields[1]), ticks / os.sysconf("SC_CLK_TCK")


def content(folder: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    lines = (folder / "reconstructions.jsonl").read_text().splitlines()
    rows = [{key: value for key, value in json.loads(line).items() if key not in CLOCKS} for line in lines]
    return rows, {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


def main() -> None:
    given = [int(word) for word in sys.argv[1:]]
    repeats, iterations = [*given, *(3, 1000)[len(given) :]]
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        api.run(parse_scenario(SCENARIO), out=run, device="cpu")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        address = str(cluster.address)
        print("one process  two workers   ratio   load | CPU s: one process  driver of two  each node   ratio", flush=True)
        try:
            for number in range(repeats):
                one, two = (Path(shutil.copytree(run, Path(place) / f"{kind}{number}")) for kind in ("one", "two"))
                alone, spent = seconds(one, iterations)
                with Workers(cluster) as workers:
                    together, driver = seconds(two, iterations, "--ray", address)
                assert content(one) == content(two), "the results differ"
                wall = f"{alone:9.1f} s{together:11.1f} s{alone / together:8.2f}{os.getloadavg()[0]:7.1f}"
                print(
                    f"{wall} |{spent:19.1f}{driver:15.1f}{workers.each:11.1f}{spent / (driver + workers.each):8.2f}", flush=True
                )
        finally:
            cluster.shutdown()


if __name__ == "__main__":
    main()
