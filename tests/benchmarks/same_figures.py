"""Do two states of fedleak give the same figures? Record them with the one, record them with the other, and compare.

    python tests/benchmarks/same_figures.py record before.json          # with the fedleak that Python imports; PYTHONPATH chooses
    python tests/benchmarks/same_figures.py record after.json
    python tests/benchmarks/same_figures.py compare before.json after.json
    python tests/benchmarks/same_figures.py record one.json --only quickstart labels

fedleak is driven through its command line alone, so that its inside may be rebuilt in between. The scenarios, in small form, are
those of SCENARIOS: one image and batches, gradients and weights, every family of attacks, label rules, defenses in chains, secure
aggregation, seven strategies, two sweeps. About four CPU minutes, one thread. None has a budget in seconds, so that the figures
do not depend on the machine's speed.

Compared are ``summary.json`` (with the digest of the model), ``rounds.jsonl``, ``reconstructions.jsonl``, ``problems.jsonl`` and
``sweep.jsonl``: PSNR within 0.001 dB, squared errors within as much of their logarithm, SSIM and LPIPS within 0.0001, other
numbers within 1e-9 of themselves (``--exact``: all of them to the last bit), and everything else equal. Left out are seconds,
memory, bytes on disk, versions and paths. Rows that an earlier version wrote are read as today's. A figure that only the second
file has is told and not counted; neither is the digest of a scenario, which changes with the place of the data and whenever a
key is added to the schema. Versions before scenarios had a secret draw other batches, so that nothing of theirs agrees with
later ones. Exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from same_figures_scenarios import SCENARIOS, Case

from fedleak.runs.earlier import of_today, sweep_row_of_today

ROOT = Path(__file__).parents[2]
LEFT_OUT = re.compile(
    r"(^|\.)(seconds|cpu_seconds|attack_seconds|memory|resources|cost\.(cpu_)?seconds|folder|truth|exhibit|modality|cell)(\.|$)"
)
TOLD = {"digest"}
SECRET = "fa1c7d5be0934826b1d7c3e9f0a8546e"
DECIBELS = {"psnr", "psnr_max", "gain", "gain_max", "best", "mean_image", "random"}
SHARES = {"ssim", "lpips"}
DB, SHARE, FRACTION = 1e-3, 1e-4, 1e-9
MSE = 10 ** (DB / 10) - 1


def write_images(folder: Path, train: int = 240, test: int = 100) -> None:
    """Write Parquet files as Hugging Face publishes CIFAR-10: noisy images (32, 32), each class with a colour of its own."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    random = np.random.default_rng(0)
    colours = random.integers(60, 196, (10, 3))

    def encoded(label: int) -> bytes:
        file = io.BytesIO()
        noisy = colours[label] + random.normal(0, 40, (32, 32, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "PNG")
        return file.getvalue()

    folder.mkdir(parents=True, exist_ok=True)
    for split, size in (("train", train), ("test", test)):
        table = {"img": [{"bytes": encoded(index % 10)} for index in range(size)], "label": [index % 10 for index in range(size)]}
        pq.write_table(pa.table(table), folder / f"{split}.parquet")


def run_case(case: Case, scratch: Path) -> dict[str, Any]:
    """Run one scenario or sweep, and return all that its folder says."""
    file, out = scratch / f"{case.name}.toml", scratch / case.name
    source = (ROOT / case.source).read_text(encoding="utf-8") if case.source else ""
    if case.defenses:  # the sweep's own are too many
        source = source.partition("[[defenses]]")[0].replace("values = [1, 2]", "values = [1]")
    file.write_text(source + case.text, encoding="utf-8")
    overrides = [override.replace("DATA", str(scratch / "images")) for override in case.overrides]
    command = [sys.executable, "-m", "fedleak", case.command, str(file), "--out", str(out), "--device", "cpu"]
    command += ["--jobs", "1"] if case.command == "sweep" else []
    overrides += [f"secret={SECRET}"] if _knows_secrets() else []
    command += [word for override in overrides for word in ("--set", override)]
    done = subprocess.run(
        command, cwd=scratch, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    said = "" if done.returncode == 0 else (done.stdout + done.stderr)[-2000:].replace(str(scratch), "")
    found: dict[str, Any] = {"exit": done.returncode, "said": said}
    if case.command != "sweep":
        return found | read_folder(out)
    cells = {_plain_name(path.name): read_folder(path) for path in sorted((out / "cells").glob("*"))}
    return found | {"cells": cells, "sweep": read_rows(out / "sweep.jsonl")}


@cache
def _knows_secrets() -> bool:
    """Say whether fedleak's clients draw from a secret of the scenario, which earlier versions do not know."""
    asked = "from fedleak.scenario.schema import Scenario; print('secret' in Scenario.model_fields)"
    return subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout.strip() == "True"


def read_folder(folder: Path) -> dict[str, Any]:
    """Return summary, rounds and reconstructions of a run folder."""
    summary = folder / "summary.json"
    return {
        "summary": json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {},
        "rounds": read_rows(folder / "rounds.jsonl"),
        "reconstructions": read_rows(folder / "reconstructions.jsonl"),
        "problems": read_rows(folder / "problems.jsonl"),
        "captures": len(list((folder / "captures").glob("*.safetensors"))),
    }


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file; none if it is missing."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _plain_name(cell: str) -> str:
    return re.sub(r"_[0-9a-f]{8}$", "", cell)  # the start of its scenario's digest


def record(out: Path, only: list[str]) -> None:
    """Run all scenarios, or those named, and write what they gave."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        asked = [sys.executable, "-c", "import fedleak; print(fedleak.__file__)"]
        print(
            "figures of",
            subprocess.run(asked, cwd=scratch, capture_output=True, text=True, check=True).stdout.strip(),
            flush=True,
        )
        write_images(Path(scratch) / "images")
        for case in SCENARIOS:
            if only and case.name not in only:
                continue
            before = _children()
            found[case.name] = run_case(case, Path(scratch))
            print(f"  {case.name:<22} exit {found[case.name]['exit']}  {_children() - before:5.1f} CPU s", flush=True)
            out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(f"{_children():.0f} CPU s in all")


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def figures(case: dict[str, Any]) -> dict[str, Any]:
    """Return every figure of a scenario by its path; rows by what they are of, so that their order does not count."""
    found = {"exit": case["exit"]}
    for name, part in case.get("cells", {"": case}).items():
        summary = part.get("summary", {})
        leakage = {"leakage": [of_today(entry) for entry in summary.get("leakage", [])]}
        found |= dict(_flat({**summary, **leakage}, f"{name} summary"))
        found |= _by_key(part.get("rounds", []), ("round",), f"{name} round")
        keys = ("round", "client", "cohort", "attack", "example")
        found |= _by_key([of_today(row) for row in part.get("reconstructions", [])], keys, f"{name} row")
        found |= _by_key(part.get("problems", []), ("round", "attack"), f"{name} problem")
        found[f"{name} captures"] = part.get("captures")
    found |= _by_key(
        [sweep_row_of_today(row) for row in case.get("sweep", [])], ("defense", "setting", "seed", "attack"), "sweep row"
    )
    return {path: value for path, value in found.items() if value is not None and not LEFT_OUT.search(path.partition(": ")[2])}


def _by_key(rows: list[dict[str, Any]], keys: tuple[str, ...], what: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    seen: Counter[str] = Counter()
    for row in rows:
        name = " ".join(f"{key} {_word(row[key])}" for key in keys if row.get(key) is not None)
        seen[name] += 1
        found |= dict(_flat(row, f"{what} {name}" + (f" #{seen[name]}" if seen[name] > 1 else "")))
    return found


def _word(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)


def _flat(value: Any, place: str, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each leaf with its path; what lies under ``metrics`` lies one level higher, where it used to be."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, place, path if key == "metrics" else f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        for number, inner in enumerate(value):
            label = inner.get("attack", inner.get("name", number)) if isinstance(inner, dict) else number
            yield from _flat(inner, place, f"{path}.{label}".lstrip("."))
    else:
        yield f"{place}: {path}", value


def same(path: str, before: Any, after: Any, exact: bool) -> bool:
    """Say whether two figures agree within what their kind allows."""
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return all(same(path, one, other, exact) for one, other in zip(before, after, strict=True))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (before, after))
    if exact or not numbers:
        return bool(before == after)
    kind = next((part for part in reversed(path.partition(": ")[2].split(".")) if part in DECIBELS | SHARES | {"mse"}), "")
    if kind in SHARES or kind in DECIBELS:
        return abs(before - after) <= (SHARE if kind in SHARES else DB)
    return math.isclose(before, after, rel_tol=MSE if kind == "mse" else FRACTION)


def compare(before: Path, after: Path, exact: bool, only: list[str]) -> bool:
    """Print every figure that differs, of all scenarios or of those named, and say whether none does."""
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (before, after))
    differing = 0
    for name in only or [*old, *(name for name in new if name not in old)]:
        if name not in old or name not in new:
            print(f"{name}: only in {before if name in old else after}")
            differing += 1
            continue
        one, other = figures(old[name]), figures(new[name])
        told = [path for path in one if path.rpartition(".")[2].rpartition(" ")[2] in TOLD and one[path] != other.get(path)]
        wrong = [path for path in one if path not in told and not (path in other and same(path, one[path], other[path], exact))]
        added = sorted({path.partition(": ")[2] for path in other if path not in one})
        differing += len(wrong)
        print(f"{name}: {len(one)} figures, {len(wrong)} differ" + (f"; scenario digests: {len(told)} differ" if told else ""))
        for path in wrong:
            print(f"  {path}: {one[path]!r} -> {other.get(path, 'missing')!r}")
        if added:
            print(f"  new: {', '.join(added)}")
        if other["exit"] != one["exit"]:
            print(f"  it said: {new[name]['said']}")
    print(f"{differing} figures differ" if differing else "all figures are the same")
    return not differing


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run all scenarios, and write their figures")
    recording.add_argument("out", type=Path)
    comparing = commands.add_parser("compare", help="print every figure that differs")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--exact", action="store_true", help="no tolerance: equal to the last bit")
    for each in (recording, comparing):
        each.add_argument("--only", nargs="+", default=[], choices=[case.name for case in SCENARIOS], metavar="NAME")
    options = parser.parse_args()
    if options.command == "record":
        record(options.out, options.only)
    elif not compare(options.before, options.after, options.exact, options.only):
        sys.exit(1)


if __name__ == "__main__":
    main()
