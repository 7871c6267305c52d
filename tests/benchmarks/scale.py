"""What many clients cost: start-up, seconds a round, memory after each round, bytes on the wire and on disk.

    python tests/benchmarks/scale.py --data DIR                                # scenarios/thousand-clients.toml as it stands
    python tests/benchmarks/scale.py --data DIR --ray --sampled 10             # the same on Ray
    python tests/benchmarks/scale.py --clients 100 1000 10000 100000 --sampled 50 1000

``DIR`` holds CIFAR-10 as train*.parquet and test*.parquet. Without ``--data``, or for more clients than it has images, images of
one colour are made, as many as there are clients (at least 20,000), which is all that the federation's own costs depend on.
Every case is a process of its own, so that none inherits another's memory. Wall seconds are of the run itself; CPU seconds of
the server's process, in which all clients compute unless ``--ray`` is given. Memory is resident, in MB of a million bytes.

The first two commands gave, on two cores that others used too (a round's CPU seconds: first, median, last; memory before the
first round, after rounds 1, 5 and 20):

                            start-up, CPU s   a round, CPU s     its attacks   memory, MB                     on disk
    in process, 50 of 1,000             7.9   0.45, 0.46, 0.48           1.1   1,141, 1,166, 1,164, 1,167      159 MB
    Ray, 10 of 1,000                    8.8   1.5, 0.09, 0.09            1.0   1,256, 1,283, 1,330, 1,339       33 MB

With little else running, a round took 0.4 s of wall time in process and 0.16 s on Ray, the first one there 8 s, for the imports
of the actors. Each of Ray's two actors held 1.1 GB. Ray's driver moves in steps of some 30 MB that come and go, without a
slope: over 100 rounds (``--rounds 100 --set attacks.0.clients=1``) 1,252 MB after round 5, 1,257 after round 75, 1,286 after
the last, where keeping one update of each client and round would add 79. ``tests/integration/test_scale.py`` fails, in process,
where that happens.

What 100,000 clients would need, in process: worked out by the slopes between 100, 1,000 and 10,000 clients (``--clients 100
1000 10000 --rounds 10 --set 'data.partition="iid"'``) and between 50, 200 and 1,000 sampled, for C clients of which S are
sampled and updates of U bytes (LeNet: 79 kB); and measured, with one image of one colour for each client (``--clients 100000
--sampled 50 1000 --rounds 5``):

                                 worked out                             S = 50   measured   S = 1,000   measured
    start-up, CPU s              6.3 + 0.16 ms x C                          22         16          22         16
    memory before round 1, MB    1,130 + 1.2 kB x C                      1,250      1,154       1,250      1,153
    more after a round, MB       20 + 2.2 U x S                             29   22 to 35         194 111 to 210
    a round, CPU s               0.06 + 0.2 us x C + 7.8 ms x S            0.5        0.5         7.9        7.5
    sent in a round, each way    U x S                                    4 MB                  79 MB
    captures of a round          2 U x S                                7.9 MB     7.9 MB      158 MB     158 MB
    line of rounds.jsonl         98 bytes x S                           4.9 kB     5.1 kB       98 kB      98 kB

So 20 rounds with 1,000 of 100,000 clients take three minutes of one core and 3.2 GB of disk (``server.captures = "attacked"``:
only for the rounds that are attacked). Of a client the process keeps the indices of its images and a Flower context; a defense
that remembers, such as deep-gradient-compression, adds two copies of the update for each client that ever took part: 16 GB for
all of them. ``iid`` and ``order`` split in a tenth of a second; flwr-datasets' Dirichlet takes 1 s for 1,000 clients and 8 s
for 10,000, and had not ended for 100,000 after ten minutes. Flower's strategies take the replies of a round as one list, so
that a round holds up to three times the size of all its updates: 6.7 GB for 50 of ResNet-18. A capture is twice the size of an
update, since it holds the model too.

On Ray, Flower looks through all messages under way for every node: a round took 0.09, 0.30 and 0.38 CPU s with 10 of 1,000,
4,000 and 10,000 nodes, and 0.56 with 50 of 1,000, so about 9 ms x S + 3 us x C x S. For 100,000 nodes that is 3 s a round with
10 sampled, 15 s with 50, five minutes with 1,000: there, in process is the engine to use. Start-up was 8.8, 9.4 and 11.3 CPU s.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCENARIO = ROOT / "scenarios" / "thousand-clients.toml"
IMAGES = 20_000
MB = 1e6


def write_images(folder: Path, train: int, test: int = 1_000) -> None:
    """Write Parquet files as Hugging Face publishes CIFAR-10, of images (32, 32) of one colour each."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    def encoded(index: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (32, 32), (index % 251, index // 251 % 251, index * 7 % 251)).save(file, "PNG")
        return file.getvalue()

    folder.mkdir(parents=True, exist_ok=True)
    for split, size in (("train", train), ("test", test)):
        table = {"img": [{"bytes": encoded(index)} for index in range(size)], "label": [index % 10 for index in range(size)]}
        pq.write_table(pa.table(table), folder / f"{split}.parquet")


def children_memory() -> list[float]:
    """Return the memory in MB of the Ray actors among this process's descendants, largest first."""
    parents, names, resident = {}, {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                status = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines() if ":" in line)
                names[int(entry.name)] = (entry / "cmdline").read_bytes()
            except OSError:  # ended meanwhile
                continue
            parents[int(entry.name)] = int(status["PPid"])
            resident[int(entry.name)] = int(status.get("VmRSS", "0 kB").split()[0]) * 1024 / MB

    def ours(process: int) -> bool:
        while process in parents:
            process = parents[process]
            if process == os.getpid():
                return True
        return False

    return sorted((resident[one] for one in names if names[one].startswith(b"ray::ClientApp") and ours(one)), reverse=True)


def run_case(overrides: list[str], out: Path, started: float) -> None:
    """Run one case in this process, and write what the run folder does not say to ``out / "case.json"``."""
    import torch

    from fedleak.events import Event
    from fedleak.experiment import run as api
    from fedleak.scenario.schema import load_scenario

    torch.set_num_threads(1)
    scenario = load_scenario(SCENARIO, overrides)
    marks: dict[str, Any] = {"start_up": None, "cpu": [], "attack_cpu": [], "actors": []}
    before = begun = ended = 0.0

    def listen(event: Event) -> None:
        nonlocal before, begun, ended
        if event.kind == "attack" and event.facts["number"] == 1:
            begun = time.process_time()
        if event.kind == "graded":
            ended = time.process_time()
        if event.kind == "round-done":
            now = time.process_time()
            if event.facts["round"] == 0:
                marks["start_up"], marks["start_up_cpu"] = time.time() - started, now
            else:
                marks["cpu"].append(now - before - (ended - begun))
                marks["attack_cpu"].append(ended - begun)
                if scenario.federation.engine == "ray":
                    marks["actors"].append(children_memory())
            before, begun, ended = time.process_time(), 0.0, 0.0

    api.run(scenario, out=out, device="cpu", listener=listen)
    marks["whole"], marks["whole_cpu"] = time.time() - started, time.process_time()
    (out / "case.json").write_text(json.dumps(marks), encoding="utf-8")


def tell(out: Path, per_round: bool) -> None:
    """Print one case."""
    marks = json.loads((out / "case.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (out / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    rounds = rows[1:]
    held = [row["memory"]["resident"] / MB for row in rows]
    print(f"  start-up {marks['start_up']:.1f} s ({marks['start_up_cpu']:.1f} CPU s), whole run {marks['whole']:.1f} s")
    for key, what in (("seconds", "s a round"), ("attack_seconds", "s of attacks a round")):
        values = [row[key] for row in rounds]
        print(f"  {what}: median {statistics.median(values):.3f}, first {values[0]:.3f}, last {values[-1]:.3f}")
    cpu, attack_cpu = marks["cpu"], statistics.median(marks["attack_cpu"])
    print(
        f"  CPU s a round: median {statistics.median(cpu):.3f}, first {cpu[0]:.3f}, last {cpu[-1]:.3f}; attacks {attack_cpu:.3f}"
    )
    middle = held[min(5, len(held) - 1)]
    print(
        f"  memory, MB: {held[0]:.0f} before round 1, {held[1]:.0f} after it, {middle:.0f} after round {min(5, len(rounds))}, "
        f"{held[-1]:.0f} after the last ({held[-1] - middle:+.1f}); peak {rows[-1]['memory']['peak'] / MB:.0f}"
    )
    if marks["actors"]:
        first, last = marks["actors"][0], marks["actors"][-1]
        print(f"  memory of Ray's actors, MB: {_whole(first)} after round 1, {_whole(last)} after the last")
    if per_round:
        print("  memory after each round, MB: " + " ".join(f"{value:.0f}" for value in held))
    costs = [cost for row in rounds for cost in row["by_client"].values()]
    captures = [path.stat().st_size for path in (out / "captures").iterdir()]
    on_disk = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    lines = (out / "rounds.jsonl").stat().st_size / len(rounds)
    print(
        f"  wire: {statistics.fmean(cost['bytes'] for cost in costs):,.0f} bytes a client each way; disk: "
        f"{statistics.fmean(captures) if captures else 0:,.0f} bytes a capture ({len(captures)}), {lines:,.0f} a line of "
        f"rounds.jsonl, "
        f"{on_disk / MB:.1f} MB in all; report {(out / 'report.html').stat().st_size / MB:.2f} MB"
    )


def _whole(values: list[float]) -> str:
    return ", ".join(f"{value:.0f}" for value in values)


def main() -> None:
    """Read the command line, and run each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CIFAR-10's Parquet files")
    parser.add_argument("--clients", type=int, nargs="+", default=[1000])
    parser.add_argument("--sampled", type=int, nargs="+", default=[50])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--ray", action="store_true", help="Flower's simulation engine in place of the one in process")
    parser.add_argument("--plain", action="store_true", help="a server that is not curious: no captures, no attacks")
    parser.add_argument("--per-round", action="store_true", help="print the memory after every round")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for `fedleak run`")
    parser.add_argument("--out", type=Path, help="keep the run folders here")
    parser.add_argument("--case", nargs=2, metavar=("OUT", "STARTED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        run_case(options.set, Path(options.case[0]), float(options.case[1]))
        return
    with tempfile.TemporaryDirectory() as scratch:
        place: Callable[[str], Path] = lambda name: (options.out or Path(scratch)) / name  # noqa: E731
        for clients in options.clients:
            data = options.data
            if data is None or clients > IMAGES:
                data = Path(scratch) / f"images-{max(clients, IMAGES)}"
                if not data.exists():
                    write_images(data, max(clients, IMAGES))
            for sampled in (one for one in options.sampled if one <= clients):
                engine = "ray" if options.ray else "inprocess"
                settings = {
                    "data.path": json.dumps(str(data)),
                    "data.source": '"parquet"',
                    "federation.clients": clients,
                    "federation.clients_per_round": sampled,
                    "federation.rounds": options.rounds,
                    "federation.engine": f'"{engine}"',
                    "server.curious": str(not options.plain).lower(),
                }
                if data != options.data:
                    settings["data.partition"] = '"iid"'  # Dirichlet cannot share out one image a client
                print(f"{clients:,} clients, {sampled:,} sampled, {options.rounds} rounds, {engine}", flush=True)
                out = place(f"{engine}-{clients}-{sampled}")
                command = [sys.executable, __file__, "--case", str(out), str(time.time())]
                command += [f"--set={key}={value}" for key, value in settings.items()] + [f"--set={one}" for one in options.set]
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
                if done.returncode:
                    sys.exit(done.stdout[-3000:])
                tell(out, options.per_round)


if __name__ == "__main__":
    main()
