"""A sweep: one table, nothing repeated, failures as rows, and what is refused before anything starts."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fedleak
from fedleak.errors import ScenarioError
from fedleak.experiment import attack_again
from fedleak.experiment import run as api
from fedleak.process.lock import Lock
from fedleak.scenario.secret import KEPT, draw, fingerprint
from fedleak.sweeps import cell as cells
from fedleak.sweeps import sweep as module
from fedleak.sweeps.folder import SweepFolder
from fedleak.sweeps.plan import load_sweep


@pytest.fixture
def quick(monkeypatch):
    """Leave out the runs' pages, which take longer than these federations."""
    for place in (api, attack_again):
        monkeypatch.setattr(place, "write_report", lambda path: None)


def rows_of(out: Path):
    return [json.loads(line) for line in (out / "sweep.jsonl").read_text().splitlines()]


def test_every_cell_is_a_row_and_the_defenses_are_judged(tiny, tmp_path, here, quick):
    result = fedleak.sweep(tiny, out=tmp_path / "out", device="cpu")
    assert len(here) == 6
    assert result.rows == rows_of(result.path)
    assert [(row["defense"], row["seed"], row["attack"]) for row in result.rows][:3] == [
        ("none", 1, "closed-form"),
        ("none", 2, "closed-form"),
        ("gaussian-noise std=0.0001", 1, "closed-form"),
    ]
    assert result.failed == []
    assert [row["control"] for row in result.rows] == [True, True, False, False, False, False]
    assert {row["chance"] for row in result.rows} == {0.1}  # two clients share twenty images
    words = {verdict.defense: verdict.word for verdict in result.verdicts}
    assert words["none"] == words["gaussian-noise std=0.0001"] == "leaks"
    assert words["gaussian-noise std=0.1"] != "leaks"
    with (result.path / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["gain"]) for row in table] == [row["gain"] for row in result.rows]
    assert result.report.read_text().startswith("\n<!doctype html>") or "<!doctype html>" in result.report.read_text()
    assert all((result.path / row["folder"] / "summary.json").exists() for row in result.rows)


def with_secret(tiny):
    """Have other processes draw what this one does."""
    tiny.write_text(tiny.read_text().replace("[scenario.data]", f'[scenario]\nsecret = "{draw()}"\n[scenario.data]'))


def test_cells_without_a_secret_share_one_that_the_sweep_keeps(tiny, tmp_path, here, quick, secretless):
    result = fedleak.sweep(tiny, out=tmp_path / "out", device="cpu")
    secret = (result.path / KEPT).read_text()
    assert ((result.path / KEPT).stat().st_mode & 0o777) == 0o600
    assert {(result.path / row["folder"] / KEPT).read_text() for row in result.rows} == {secret}
    # The same images were drawn with each defense, and others by another seed.
    names = {(row["seed"], row["defense"]): [image["name"] for image in row["examples"]] for row in result.rows}
    assert names[1, "none"] == names[1, "gaussian-noise std=0.1"]
    tiny.write_text(tiny.read_text().replace("[1, 2]", "[1, 2, 3]"))
    fedleak.sweep(tiny, out=tmp_path / "out", device="cpu")
    assert {path.read_text() for path in result.path.glob(f"cells/*/{KEPT}")} == {secret}


def test_the_sweep_s_folder_tells_the_fingerprint_of_its_file_s_secret(tiny, tmp_path, here, quick):
    secret = draw()
    tiny.write_text(tiny.read_text().replace("[scenario.data]", f'[scenario]\nsecret = "{secret.upper()}"\n[scenario.data]'))
    result = fedleak.sweep(tiny, out=tmp_path / "out", device="cpu", overrides=[f"secret={secret}"])
    told = [path for path in result.path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes().lower()]
    assert {path.name for path in told} == {KEPT}
    assert str(fingerprint(secret)) in (result.path / "sweep.json").read_text()


def test_started_again_it_repeats_nothing_and_a_larger_sweep_adds_its_cells(tiny, tmp_path, here, quick):
    first = fedleak.sweep(tiny, out=tmp_path / "out", device="cpu")
    here.clear()
    again = fedleak.sweep(tiny, out=tmp_path / "out", device="cpu")
    assert here == []
    assert again.rows == first.rows
    tiny.write_text(tiny.read_text().replace("[1, 2]", "[1, 2, 3]"))
    larger = fedleak.sweep(tiny, out=tmp_path / "out", device="cpu")
    assert len(here) == 3
    assert all("seed-3" in name for name in here)
    assert len(larger.rows) == 9


def test_a_cell_that_fails_is_a_row_the_others_go_on_and_it_is_tried_again(tiny, tmp_path, quick, monkeypatch):
    broken = load_sweep(tiny).cells[3].name

    class Here:
        def __init__(self, workers, log, function):
            pass

        def run(self, jobs, watcher):
            for job in jobs:
                if job.name == broken and not (tmp_path / "mended").exists():
                    watcher.done(job.name, "out of [bold]memory[/bold]")
                else:
                    cells.run_cell(job)
                    watcher.done(job.name, None)

    monkeypatch.setattr(module, "Pool", Here)
    result = fedleak.sweep(tiny, out=tmp_path / "out", device="cpu")
    assert len(result.rows) == 6
    [failed] = result.failed
    assert (failed["cell"], failed["attack"], failed["error"]) == (broken, None, "out of [bold]memory[/bold]")
    assert rows_of(result.path) == result.rows
    (tmp_path / "mended").touch()
    mended = fedleak.sweep(tiny, out=tmp_path / "out", device="cpu")
    assert mended.failed == []
    assert [row["cell"] for row in mended.rows] == [row["cell"] for row in result.rows]


def test_an_interrupt_leaves_the_table_and_the_page_of_what_is_done(tiny, tmp_path, quick, monkeypatch):
    class Here:
        def __init__(self, workers, log, function):
            pass

        def run(self, jobs, watcher):
            cells.run_cell(jobs[0])
            watcher.done(jobs[0].name, None)
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "Pool", Here)
    with pytest.raises(KeyboardInterrupt):
        fedleak.sweep(tiny, out=tmp_path / "out", device="cpu")
    assert len(rows_of(tmp_path / "out")) == 1
    page = (tmp_path / "out" / "sweep.html").read_text()
    assert "5 of 6 runs are not finished" in page
    with Lock(tmp_path / "out" / "sweep.lock", "x"):
        pass


def test_all_cells_are_checked_before_anything_is_there(tiny, tmp_path, here):
    tiny.write_text(tiny.read_text().replace("[1e-4, 0.1]", "[1e-4, -1.0]"))
    with pytest.raises(ScenarioError, match=r"cell 'gaussian-noise-std=-1_seed-1_.*std: expected a number") as refused:
        fedleak.sweep(tiny, out=tmp_path / "out", device="cpu")
    assert "\n" not in str(refused.value)
    assert here == []
    assert not (tmp_path / "out").exists()


def test_another_sweep_or_something_else_in_the_folder_is_refused(tiny, tmp_path, here, quick):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(ScenarioError, match="is no sweep's folder"):
        fedleak.sweep(tiny, out=out, device="cpu")
    with pytest.raises(ScenarioError, match="is no sweep's folder"):
        fedleak.sweep(tiny, out=out / "thesis.tex", device="cpu")
    fedleak.sweep(tiny, out=tmp_path / "tiny", device="cpu")
    tiny.write_text(tiny.read_text().replace('name = "tiny"', 'name = "other"'))
    with pytest.raises(ScenarioError, match="holds the sweep 'tiny', not 'other'"):
        fedleak.sweep(tiny, out=tmp_path / "tiny", device="cpu")
    with pytest.raises(ScenarioError, match="no sweep's folder"):
        SweepFolder.open(tmp_path)


def test_two_sweeps_do_not_work_in_one_folder(tiny, tmp_path, here):
    out = tmp_path / "out"
    SweepFolder.prepare(out)
    busy = rf"another sweep is at work there \(process {os.getpid()} on"
    with Lock(out / "sweep.lock", "x"), pytest.raises(ScenarioError, match=busy):
        fedleak.sweep(tiny, out=out, device="cpu")
    assert here == []
    # A start that was killed before it wrote anything else does not keep the next one out.
    assert SweepFolder.prepare(out).path == out


def test_a_text_that_looks_like_a_formula_is_none_in_the_spreadsheet(tmp_path):
    folder = SweepFolder(tmp_path)
    folder.write_table([{"cell": "a", "error": "=1+1"}, {"cell": "b", "gain": -2.5, "error": None}])
    with (tmp_path / "sweep.csv").open() as file:
        first, second = csv.DictReader(file)
    assert first["error"] == "'=1+1"
    assert second["gain"] == "-2.5"


# --- real processes ---------------------------------------------------------------------------------------------------

FORTY = "values = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]"


@pytest.fixture
def start():
    """Start a sweep in a process of its own; end what is left of it after the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(file: Path, out: Path, *more: str) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-m",
            "fedleak",
            "sweep",
            str(file),
            "--out",
            str(out),
            "--device",
            "cpu",
            "--jobs",
            "2",
            *more,
        ]
        started.append(
            subprocess.Popen(
                command, cwd=file.parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_listen_to_ctrl_c
            )
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def _listen_to_ctrl_c() -> None:
    """Undo what a shell does to its background jobs, which the tests may be: they ignore Ctrl-C, and so do their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(happened, process, seconds=600):
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def marks(out: Path) -> dict[str, tuple[int, int]]:
    """What tells whether a finished cell was touched: its rows' and its checkpoint's file."""
    found = {}
    for path in (out / "done").glob("*.json"):
        checkpoint = out / "cells" / path.stem / "checkpoint.safetensors"
        found[path.stem] = (path.stat().st_mtime_ns, checkpoint.stat().st_mtime_ns)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds children in /proc")
def test_a_sweep_of_40_runs_killed_twice_finishes_with_40_distinct_results_none_repeated(tiny, tmp_path, start):
    with_secret(tiny)
    tiny.write_text(tiny.read_text().replace("values = [1, 2]", FORTY).replace("[1e-4, 0.1]", "[1e-4, 1e-2, 0.1]"))
    out, before = tmp_path / "out", {}
    for enough, with_children in ((10, True), (25, False)):
        process = start(tiny, out)
        wait_for(lambda enough=enough: len(list((out / "done").glob("*.json"))) >= enough, process)
        workers = children(process.pid)
        assert len(workers) == 2
        process.kill()
        for worker in workers if with_children else ():
            os.kill(worker, signal.SIGKILL)
        process.communicate()
        deadline = time.monotonic() + 60
        while any(map(alive, workers)):  # workers that were not killed end themselves
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert before.items() <= marks(out).items()
        before = marks(out)
        assert enough <= len(before) < 40
    half_done = {path.name for path in (out / "cells").iterdir()} - before.keys()

    process = start(tiny, out)
    told, complained = process.communicate(timeout=600)
    assert process.returncode == 0, complained
    assert f"40 runs, {len(before)} finished already" in complained
    rows = rows_of(out)
    assert len(rows) == len({row["digest"] for row in rows}) == len({row["cell"] for row in rows}) == 40
    assert len({(row["defense"], row["seed"]) for row in rows}) == 40
    assert before.items() <= marks(out).items()
    assert all(len((out / row["folder"] / "reconstructions.jsonl").read_text().splitlines()) == 2 for row in rows)

    plan = {cell.name: cell.scenario for cell in load_sweep(tiny).cells}
    for name in sorted(half_done)[:3] or [next(iter(plan))]:
        straight = api.run(plan[name], out=tmp_path / name, device="cpu")
        ours = [
            json.loads(line)["metrics"]["psnr"]
            for line in (out / "cells" / name / "reconstructions.jsonl").read_text().splitlines()
        ]
        assert ours == [row["metrics"]["psnr"] for row in straight.reconstructions]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds children in /proc")
def test_a_worker_that_dies_is_a_failed_row_and_the_others_go_on(tiny, tmp_path, monkeypatch):
    (tmp_path / "deadly.py").write_text(
        "import os, signal\n"
        "from fedleak.attacks.base import Attack\n"
        "class Deadly(Attack):\n"
        "    name = 'deadly'\n"
        "    def reconstruct(self, observation, model, *, rng, device, budget):\n"
        "        if observation.client == 0 and rng.root == __import__('fedleak').Seed(1).derive('attack').value:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        raise RuntimeError('one at a time')\n"
    )
    tiny.write_text(tiny.read_text().replace('name = "closed-form"', 'name = "deadly:Deadly"').replace("[1e-4, 0.1]", "[0.1]"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    result = fedleak.sweep(tiny, out=tmp_path / "out", device="cpu", jobs=1)
    assert len(result.rows) == 4
    died = [row for row in result.rows if row["error"]]
    assert [row["seed"] for row in died] == [1, 1]
    assert all("its process died (killed by SIGKILL" in row["error"] for row in died)
    assert [row["failure"] for row in result.rows if not row["error"]] == ["RuntimeError: one at a time"] * 2


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tiny, tmp_path, start):
    tiny.write_text(tiny.read_text().replace("values = [1, 2]", FORTY))
    process = start(tiny, tmp_path / "out", "--set", "local.batch_size=1")
    wait_for(lambda: len(list((tmp_path / "out" / "done").glob("*.json"))) >= 2, process)
    process.send_signal(signal.SIGINT)
    _, complained = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"go on with: fedleak sweep {tiny} --set local.batch_size=1 --out {tmp_path / 'out'}" in complained
    assert "Traceback" not in complained
    assert 2 <= len(rows_of(tmp_path / "out")) < 30
    assert "not finished" in (tmp_path / "out" / "sweep.html").read_text()


@pytest.mark.slow
def test_ray_gives_the_same_rows(tiny, tmp_path, here, quick, start):
    with_secret(tiny)
    ours = fedleak.sweep(tiny, out=tmp_path / "here", device="cpu")
    process = start(tiny, tmp_path / "ray", "--ray", "local")
    _, complained = process.communicate(timeout=600)
    assert process.returncode == 0, complained
    clocks = ("seconds", "cpu_seconds")
    theirs = rows_of(tmp_path / "ray")
    assert [{key: value for key, value in row.items() if key not in clocks} for row in theirs] == [
        {key: value for key, value in row.items() if key not in clocks} for row in ours.rows
    ]


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_refused(tiny, tmp_path, start):
    process = start(tiny, tmp_path / "out", "--ray", "127.0.0.1:1")
    _, complained = process.communicate(timeout=600)
    assert process.returncode == 2, complained
    assert "--ray 127.0.0.1:1: no Ray cluster there" in complained
    assert "Traceback" not in complained
