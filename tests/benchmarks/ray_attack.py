"""Time ``fedleak attack`` in one process and on a Ray cluster of two nodes with one CPU each: 32 captures, one thread.

    python tests/benchmarks/ray_attack.py [REPEATS] [ITERATIONS]

Four clients, eight rounds, LeNet, 16-pixel samples; inverting-gradients, one update at a time. Each time is that of the whole
command, imports, connection, grading and report included; the cluster is up before. The two take turns, and after each pair the
rows and images are compared bit by bit. Run it on two idle cores: the ratio says nothing where others use them too, so the load
(processes that want to run, over the last minute, the measured ones included) is printed beside it.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from fedleak import api
from fedleak.scenario import parse_scenario

SCENARIO = {
    "name": "thirty-two",
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


def content(folder: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    lines = (folder / "reconstructions.jsonl").read_text().splitlines()
    rows = [{key: value for key, value in json.loads(line).items() if key not in CLOCKS} for line in lines]
    return rows, {path.name: path.read_bytes() for path in (folder / "images").iterdir()}


def main() -> None:
    given = [int(word) for word in sys.argv[1:]]
    repeats, iterations = [*given, *(3, 1500)[len(given) :]]
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        api.run(parse_scenario(SCENARIO), out=run, device="cpu")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        address = str(cluster.address)
        print(
            "    one process    two workers   ratio  CPU s: one process  driver of two  reconstructions of two   load", flush=True
        )
        try:
            for number in range(repeats):
                one, two = (Path(shutil.copytree(run, Path(place) / f"{kind}{number}")) for kind in ("one", "two"))
                (alone, spent), (together, driver) = seconds(one, iterations), seconds(two, iterations, "--ray", address)
                assert content(one) == content(two), "the results differ"
                made = sum(row["cpu_seconds"] for row in api.Result(two, {}).reconstructions)
                wall = f"{alone:9.1f} s{together:11.1f} s{alone / together:8.2f}"
                print(f"{wall} |{spent:19.1f}{driver:15.1f}{made:17.1f}{os.getloadavg()[0]:7.1f}", flush=True)
        finally:
            cluster.shutdown()


if __name__ == "__main__":
    main()
