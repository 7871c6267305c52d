"""What does it cost to start? CPU seconds of commands against ``import torch``, of the quickstart, of a message on a SuperLink.

    python tests/benchmarks/startup.py
    python tests/benchmarks/startup.py --only commands --repeats 9
    python tests/benchmarks/startup.py --only quickstart fedavg message

Which fedleak is measured is for PYTHONPATH to say, by an absolute path. CPU seconds are user and system of the process and all
that it started, as the system counts them when it has ended, on one thread.

``commands``: each command once without counting, then all of them by turns, ``import torch`` among them; the ratios are of
commands of the same turn: their median, and the range. ``quickstart``: ``fedleak run scenarios/quickstart.toml``, report
included. ``fedavg``: the same with ``--set federation.protocol=fedavg``, ended after ``--limit`` CPU seconds if it is not done by
then. Both print what came out.

``message``: a SuperLink, a server and one SuperNode on this machine over TLS, as ``fedleak deploy up`` starts them, and four
rounds, each attacked by linear algebra. The SuperNode starts a process for every message: their times are read from /proc while
they live and until they are collected, so that neither the node's own start nor the SuperLink's or the server's counts.
``train`` is a message to train, ``query`` any other: who a node is, and a grade for each attacked round. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "scenarios" / "quickstart.toml")
TORCH = "import torch"
FEDLEAK = (sys.executable, "-m", "fedleak")
COMMANDS = {
    TORCH: (sys.executable, "-c", TORCH),
    "python alone": (sys.executable, "-c", "pass"),
    "import fedleak": (sys.executable, "-c", "import fedleak"),
    "import fedleak; fedleak.run": (sys.executable, "-c", "import fedleak; fedleak.run"),
    "fedleak --version": (*FEDLEAK, "--version"),
    "fedleak list": (*FEDLEAK, "list"),
    "fedleak explain closed-form": (*FEDLEAK, "explain", "closed-form"),
    "fedleak check quickstart.toml": (*FEDLEAK, "check", QUICKSTART),
}
MESSAGES = """
name = "message"
[data]
source = "samples"
[federation]
clients = 1
rounds = 4
[[attacks]]
name = "closed-form"
"""
POLL = 0.02
PATIENCE = 600.0
TICK = os.sysconf("SC_CLK_TCK")


def spent(command: tuple[str, ...], scratch: Path, limit: int | None = None) -> tuple[float, int]:
    """Return the CPU seconds and the exit code of a command; past ``limit`` CPU seconds it is ended with SIGXCPU."""

    def restrict() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))

    with (scratch / "log").open("w") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=scratch, env=environment, stdout=log, stderr=log, preexec_fn=restrict)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime, process.returncode


def commands(options: argparse.Namespace, scratch: Path) -> None:
    """Print what each command takes."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(options.repeats + 1):
        for name, command in COMMANDS.items():
            seconds, code = spent(command, scratch)
            if code:
                sys.exit(f"{name} ended with {code}:\n{(scratch / 'log').read_text(encoding='utf-8')[-2000:]}")
            if turn:
                found[name].append(seconds)
    print(f"{'':32}{'CPU s':>20}{'against import torch':>26}")
    for name, values in found.items():
        ratios = [value / torch for value, torch in zip(values, found[TORCH], strict=True)]
        print(f"{name:32}{_spread(values):>20}{_spread(ratios):>24} x", flush=True)


def quickstart(options: argparse.Namespace, scratch: Path) -> None:
    """Print what the quickstart takes."""
    for number in range(options.runs):
        _run("quickstart", (QUICKSTART,), scratch, scratch / f"quickstart-{number}", options.limit)


def fedavg(options: argparse.Namespace, scratch: Path) -> None:
    """Print what the quickstart takes with FedAvg."""
    settings = (QUICKSTART, "--set", "federation.protocol=fedavg")
    _run("quickstart, protocol=fedavg", settings, scratch, scratch / "fedavg", options.limit)


def _run(name: str, settings: tuple[str, ...], scratch: Path, out: Path, limit: int) -> None:
    seconds, code = spent((*FEDLEAK, "run", *settings, "--out", str(out), "--device", "cpu"), scratch, limit)
    if code == -signal.SIGXCPU:
        print(f"{name}: not done after {limit} CPU s", flush=True)
    else:
        print(f"{name}: {seconds:.1f} CPU s, exit code {code}", flush=True)
    file = out / "reconstructions.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    for attack in dict.fromkeys(row["attack"] for row in rows):
        mine = [row for row in rows if row["attack"] == attack]
        psnr = [value for row in mine if (value := row.get("metrics", row).get("psnr")) is not None]
        updates = {(row["round"], row["client"]): row["cpu_seconds"] for row in mine}
        median = f"{statistics.median(psnr):.1f} dB ({min(psnr):.1f}-{max(psnr):.1f})" if psnr else "none graded"
        print(f"  {attack}: {len(updates)} updates, {len(psnr)} images, {median}, {sum(updates.values()):.1f} CPU s", flush=True)


def message(options: argparse.Namespace, scratch: Path) -> None:
    """Print what one message on a SuperLink takes."""
    torch = statistics.median(spent(COMMANDS[TORCH], scratch)[0] for _ in range(options.repeats))
    (scratch / "messages.toml").write_text(MESSAGES, encoding="utf-8")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)}
    call: Callable[..., Any] = lambda *words: [*FEDLEAK, "deploy", *words]  # noqa: E731
    subprocess.run(call("certs", "--clients", "1"), cwd=scratch, env=environment, check=True, capture_output=True)
    with (scratch / "up.log").open("w") as log:
        up = subprocess.Popen(call("up", "--port", str(_free_port())), cwd=scratch, env=environment, stdout=log, stderr=log)
    try:
        _wait(lambda: "SuperLink at" in (scratch / "up.log").read_text(encoding="utf-8"), up, scratch / "up.log")
        with (scratch / "submit.log").open("w") as log:
            submit = subprocess.Popen(call("submit", "messages.toml"), cwd=scratch, env=environment, stdout=log, stderr=log)
        found = _watch(up.pid, submit)
        if submit.returncode:
            sys.exit(f"the run failed:\n{(scratch / 'submit.log').read_text(encoding='utf-8')[-2000:]}")
        log_file = next(scratch.rglob("client-0.log"), None)
        said = log_file.read_text(encoding="utf-8", errors="replace") if log_file else ""
    finally:
        up.send_signal(signal.SIGINT)
        up.wait()
    kinds = re.findall(r"Receiving: (\w+)\b", said)
    kinds = kinds if len(kinds) == len(found) else ["message"] * len(found)
    print(f"import torch: {torch:.2f} CPU s")
    for kind in dict.fromkeys(kinds):
        values = [seconds for name, seconds in zip(kinds, found, strict=True) if name == kind]
        ratio = statistics.median(values) / torch
        print(f"one message on a SuperLink, {kind}: {_spread(values)} CPU s of {len(values)}, {ratio:.2f} x import torch")
    print(f"one message on a SuperLink, all: mean {statistics.fmean(found):.2f} CPU s of {len(found)}", flush=True)


def _watch(ancestor: int, run: subprocess.Popen[Any]) -> list[float]:
    """Return the CPU seconds of each client process below ``ancestor`` until a run ends, in the order of their start."""
    seen: dict[int, float] = {}
    deadline, parents = time.monotonic() + PATIENCE, {}
    left = 50  # looks after the run's end, for processes that are just ending
    while left:
        left -= run.poll() is not None
        if time.monotonic() > deadline:
            run.kill()
            sys.exit(f"the run was not done after {PATIENCE:.0f} s")
        for process, parent, name, ticks in _processes():
            parents[process] = parent
            # What a client itself forks is counted with it once it has ended.
            if name.startswith("flwr-clientapp") and parent not in seen and _below(process, ancestor, parents):
                seen[process] = ticks / TICK
        time.sleep(POLL)
    return list(seen.values())


def _processes() -> Iterator[tuple[int, int, str, int]]:
    """Yield id, parent, name and CPU ticks of every process, those that have ended and are not collected yet among them."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name, _, rest = (entry / "stat").read_text(encoding="utf-8", errors="replace").partition("(")[2].rpartition(")")
            except OSError:  # ended meanwhile
                continue
            fields = rest.split()
            yield int(entry.name), int(fields[1]), name, sum(map(int, fields[11:15]))


def _below(process: int, ancestor: int, parents: dict[int, int]) -> bool:
    while process in parents and process != ancestor:
        process = parents[process]
    return process == ancestor


def _wait(done: Callable[[], bool], process: subprocess.Popen[Any], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"the deployment did not start:\n{log.read_text(encoding='utf-8')[-2000:]}")
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


ROWS = {"commands": commands, "quickstart": quickstart, "fedavg": fedavg, "message": message}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--repeats", type=int, default=5, help="of each command (default 5)")
    parser.add_argument("--runs", type=int, default=1, help="of the quickstart (default 1)")
    parser.add_argument("--limit", type=int, default=300, help="CPU seconds that a run may take (default 300)")
    options = parser.parse_args()
    for name in options.only:
        with tempfile.TemporaryDirectory() as scratch:
            ROWS[name](options, Path(scratch))


if __name__ == "__main__":
    main()
