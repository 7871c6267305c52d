"""``fedleak attack --jobs | --ray`` with real processes: they die, are stopped, and the same command makes the rest."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedleak.events import Event
from fedleak.experiment.attack_again import attack_run
from fedleak.experiment.result import Result
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import Scenario

Build, Start = Callable[..., Scenario], Callable[..., Result]
Facts = Callable[[Path], Any]

SMALL = {"iterations": 2, "restarts": 1}

DEADLY = """
import os, pathlib, signal, time
from fedleak.attacks.base import Attack, Reconstruction
import torch

PLACE = pathlib.Path(__file__).parent

class Deadly(Attack):
    name = "deadly"

    def reconstruct(self, observation, model, *, rng, device, budget):
        if observation.client == 0 and not (PLACE / "mercy").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if observation.client == 1:
            raise RuntimeError("one at a time")
        (PLACE / "seen" / f"{time.time_ns()}-{observation.round}-{observation.client}").touch()
        if (PLACE / "slow").exists():
            time.sleep(1.5)
        return Reconstruction(torch.rand(1, *observation.input.shape, generator=rng.generator()))
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``fedleak attack`` in a process of its own, where the plugin above is found; end what is left of it."""
    (tmp_path / "deadly.py").write_text(DEADLY)
    (tmp_path / "seen").mkdir()
    started: list[subprocess.Popen[str]] = []

    def begin(folder: Path, *words: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "fedleak", "attack", str(folder), "--device", "cpu", *words]
        started.append(
            subprocess.Popen(
                line,
                cwd=tmp_path,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    _, complained = process.communicate(timeout=300)
    assert process.returncode == code, complained
    assert "Traceback" not in complained
    return complained


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def dead(path: Path) -> dict[tuple[int, int], str | None]:
    return {
        (row["round"], row["client"]): row["error"]
        for row in RunFolder(path).rows("reconstructions.jsonl")
        if row["attack"] == "Deadly"
    }


def seen(tmp_path: Path) -> list[str]:
    return ["-".join(path.name.split("-")[1:]) for path in sorted((tmp_path / "seen").iterdir())]


@pytest.mark.slow
def test_worker_processes_give_what_one_process_gives(build: Build, pair: Callable[..., tuple[Path, Path]], facts: Facts) -> None:
    one, other = pair(local={"batch_size": 2})
    specs = build(attacks=[{"name": "inverting-gradients", "together": 1, "iterations": 5, "restarts": 2}]).attacks
    attack_run(one, specs, device="cpu")
    told: list[Event] = []
    attack_run(other, specs, device="cpu", jobs=2, listener=told.append)
    assert [event.facts["done"] for event in told if event.kind == "orders"][-1] == 9
    assert not [row["error"] for row in RunFolder(other).rows("reconstructions.jsonl") if row["error"]]
    assert facts(other) == facts(one)


@pytest.mark.slow
def test_a_worker_that_dies_is_a_failed_row_and_is_tried_again_alone(
    pair: Callable[..., tuple[Path, Path]], tmp_path: Path, command: Callable[..., subprocess.Popen[str]]
) -> None:
    one, _ = pair()
    words = ["--attack", "deadly:Deadly", "--jobs", "2"]
    complained = ended(command(one, *words))
    assert "The same command tries them again" in complained
    errors = dead(one)
    assert len(errors) == 9
    assert all("killed by SIGKILL" in str(errors[n, 0]) for n in (1, 2, 3))
    assert [errors[n, 1] for n in (1, 2, 3)] == ["RuntimeError: one at a time"] * 3
    assert [errors[n, 2] for n in (1, 2, 3)] == [None] * 3
    (tmp_path / "mercy").touch()
    before = seen(tmp_path)
    assert "tries them again" not in ended(command(one, *words))
    assert sorted(seen(tmp_path)[len(before) :]) == ["1-0", "2-0", "3-0"]
    assert [key for key, error in dead(one).items() if error] == [(1, 1), (2, 1), (3, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_and_started_again_nothing_is_done_twice(
    pair: Callable[..., tuple[Path, Path]], tmp_path: Path, command: Callable[..., subprocess.Popen[str]], how: signal.Signals
) -> None:
    one, _ = pair()
    (tmp_path / "mercy").touch()
    words = ["--attack", "deadly:Deadly", "--jobs", "2"]
    (tmp_path / "slow").touch()
    process = command(one, *words)
    # The first three come almost at once, the fifth after another slow one, when those before it are graded.
    wait_for(lambda: len(list((one / "again").glob("a0-*.safetensors"))) >= 5, process)
    process.send_signal(how)
    _, complained = process.communicate(timeout=300)
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert f"go on with: fedleak attack {one} --attack deadly:Deadly --device cpu --threads 1 --jobs 2" in complained
        assert len(dead(one)) >= 2  # of what is not graded yet, the results are kept
    kept = {path.stem[3:] for path in (one / "again").glob("a0-*.safetensors")}
    before = len(seen(tmp_path))
    (tmp_path / "slow").unlink()
    ended(command(one, *words))
    again_done = {f"r{int(r):03d}-c{int(c):03d}" for r, c in (name.split("-") for name in seen(tmp_path)[before:])}
    assert not kept & again_done
    assert dead(one) == {(r, c): "RuntimeError: one at a time" if c == 1 else None for r in (1, 2, 3) for c in range(3)}


def rows_of(path: Path) -> list[dict[str, Any]]:
    clocks = {"seconds", "cpu_seconds"}
    lines = (path / "reconstructions.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in clocks} for line in lines]


@pytest.fixture
def cluster() -> Iterator[str]:
    """Start a Ray cluster of two nodes with one CPU each; return its address."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    yield str(nodes.address)
    nodes.shutdown()


@pytest.mark.slow
def test_a_cluster_of_two_nodes_gives_the_same_survives_dead_workers_and_goes_on_after_a_kill(
    pair: Callable[..., tuple[Path, Path]],
    build: Build,
    tmp_path: Path,
    facts: Facts,
    cluster: str,
    command: Callable[..., subprocess.Popen[str]],
) -> None:
    one, other = pair()
    for wanted in ({"name": "dlg", "together": 1, **SMALL}, {"name": "dlg-fb", "success_loss": 1e9, **SMALL}):
        attack_run(one, build(attacks=[wanted]).attacks, device="cpu")
    words = ["--set", "iterations=2", "--set", "restarts=1", "--ray", cluster]
    ended(command(other, "--attack", "dlg", "--set", "together=1", *words))
    ended(command(other, "--attack", "dlg-fb", "--set", "success_loss=1e9", *words))
    assert rows_of(other) == rows_of(one)
    assert {path.name: path.read_bytes() for path in (other / "images").iterdir()} == {
        path.name: path.read_bytes() for path in (one / "images").iterdir()
    }
    assert RunFolder(other).manifest == RunFolder(one).manifest

    deadly = ["--attack", "deadly:Deadly", "--ray", cluster]
    (tmp_path / "slow").touch()
    process = command(other, *deadly)
    wait_for(lambda: len(list((other / "again").glob("a0-*-c002.safetensors"))) >= 1, process)
    process.kill()
    process.communicate()
    assert (other / "again").is_dir()
    (tmp_path / "slow").unlink()
    assert "The same command tries them again" in ended(command(other, *deadly))
    errors = dead(other)
    assert len(errors) == 9
    assert all("died" in str(errors[n, 0]) for n in (1, 2, 3)), errors
    assert [errors[n, 1] for n in (1, 2, 3)] == ["RuntimeError: one at a time"] * 3
    (tmp_path / "mercy").touch()
    ended(command(other, *deadly))
    assert [key for key, error in dead(other).items() if error] == [(1, 1), (2, 1), (3, 1)]
    assert not (other / "again").exists()
