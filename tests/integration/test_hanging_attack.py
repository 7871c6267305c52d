"""Attacks that never end, and attacks that take all memory: each is a row, and the federation trains as without them."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from fedleak.attacks.base import Attack, Reconstruction
from fedleak.experiment import run as api
from fedleak.experiment.result import Result
from fedleak.observation import Observation
from fedleak.report.faults import faults
from fedleak.runs.folder import RunFolder
from fedleak.runs.records import read_records
from fedleak.sandbox import limit
from fedleak.scenario.schema import Scenario, parse_scenario

Build, Start = Callable[..., Scenario], Callable[..., Result]
Register = Callable[[type[Attack]], type[Attack]]


def spin() -> None:
    while True:
        pass


def spin_in_torch() -> None:
    values = torch.ones(200, 200)
    while True:
        values = (values @ values).sigmoid()


HANGS: dict[str, Callable[[], None]] = {
    "a loop": spin,
    "a loop of PyTorch": spin_in_torch,
    "a sleep": lambda: time.sleep(3),
    "one long operation": lambda: torch.linalg.svd(torch.rand(1500, 1500)) and None,  # type: ignore[func-returns-value]
}


@pytest.fixture
def hanging(plugin: Register) -> Callable[[Callable[[], None]], str]:
    """Register an attack that hangs on the updates of client 1."""

    def make(hang: Callable[[], None]) -> str:
        class Hanging(Attack):
            name: ClassVar[str] = "hanging"

            def reconstruct(self, observation: Observation, model: Any, **_: Any) -> Reconstruction:
                if observation.client == 1:
                    hang()
                return Reconstruction(torch.full((observation.batch_size, *observation.input.shape), 0.5))

        return plugin(Hanging).name

    return make


@pytest.mark.parametrize("kind", HANGS)
@pytest.mark.parametrize("by", ["its budget", "the scenario's limit"])
def test_an_attack_that_hangs_is_a_row_and_the_round_goes_on(
    build: Build,
    start: Start,
    hanging: Callable[[Any], str],
    grey: str,
    kind: str,
    by: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limit, "GRACE", 0.1)
    monkeypatch.setattr(limit, "_LAST_WORDS", 0.2)
    spec: dict[str, Any] = {"name": hanging(HANGS[kind])} | ({"budget_seconds": 0.01} if by == "its budget" else {})
    server = {} if by == "its budget" else {"attack_limit": 0.2}
    expected = start(build(server={"curious": False})).summary["model_sha256"]
    result = start(build(attacks=[spec, {"name": grey}], server=server))
    failed = [row for row in result.reconstructions if row["error"]]
    assert [(row["round"], row["client"], row["attack"]) for row in failed] == [(1, 1, "hanging"), (2, 1, "hanging")]
    for row in failed:
        assert "the attack hangs: it had not ended after 0.2 s, and " in row["error"]
        assert "was stopped" in row["error"] or "could not be stopped" in row["error"]
        assert "attack-failed" in row["flags"]
    assert (result.summary["attack_failures"], result.summary["model_sha256"]) == (2, expected)
    assert len([row for row in result.reconstructions if "psnr" in row["metrics"]]) == 4 + 6
    plain = start(build(attacks=[{"name": grey}]))
    assert graded(result, grey) == graded(plain, grey)


def graded(result: Result, attack: str) -> list[Any]:
    return [(row["client"], row["metrics"].get("psnr")) for row in result.reconstructions if row["attack"] == attack]


def test_a_limit_that_is_not_reached_changes_no_number(build: Build, start: Start) -> None:
    attack = {"name": "inverting-gradients", "iterations": 5}
    plain = start(build(attacks=[attack]))
    limited = start(build(attacks=[attack], server={"attack_limit": 600}))
    assert graded(limited, "inverting-gradients") == graded(plain, "inverting-gradients")


def test_an_attack_that_hangs_when_it_is_shown_a_round_is_told(build: Build, start: Start, plugin: Register) -> None:
    class Remembers(Attack):
        name: ClassVar[str] = "remembers"
        remembers = True

        def remember(self, observations: Any) -> None:
            spin()

        def reconstruct(self, observation: Observation, model: Any, **_: Any) -> Reconstruction:
            return Reconstruction(torch.zeros(observation.batch_size, *observation.input.shape))

    told: list[str] = []

    def listen(event: Any) -> None:
        if event.kind == "problem":
            told.append(event.facts["error"])

    result = start(build(attacks=[{"name": plugin(Remembers).name}], server={"attack_limit": 0.1}), listener=listen)
    assert result.summary["rounds"] == 2
    assert len(told) == 2
    assert all("hangs" in error for error in told)
    kept = RunFolder(result.path).rows("problems.jsonl")
    assert [(row["round"], row["attack"], row["error"]) for row in kept] == [(1, "remembers", told[0]), (2, "remembers", told[1])]
    [fault] = faults(read_records(result.path))
    assert (fault.when, fault.attack) == ("1–2", "remembers")
    assert told[0] in fault.what


def test_the_limit_is_no_part_of_the_experiment_unless_it_is_set() -> None:
    plain, limited = (parse_scenario({"name": "x", "server": server}) for server in ({}, {"attack_limit": 5}))
    assert plain.digest == parse_scenario({"name": "y"}).digest != limited.digest


HUNGRY = """
import torch
from fedleak.attacks.base import Attack, Reconstruction, attacks


class Hungry(Attack):
    name = "hungry"

    def reconstruct(self, observation, model, **_):
        held = []
        while observation.client == 1:
            held.append(bytearray(2**24) if observation.round == 1 else torch.ones(2**22))
        return Reconstruction(torch.full((observation.batch_size, *observation.input.shape), 0.5))
"""

# What is there once all is loaded, and 600 MB more: a real limit, which the attack runs into.
LIMITED = """
import resource, sys
import fedleak.experiment.run, fedleak.cli.live
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20,) * 2)
from fedleak.cli.app import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["", "server.attack_limit = 300\n"], ids=["here", "in a thread"])
def test_an_attack_that_takes_all_memory_is_a_row_and_gives_it_back(
    facts: Callable[[Path], Any], tmp_path: Path, limit: str
) -> None:
    (tmp_path / "hungry.py").write_text(HUNGRY)
    (tmp_path / "s.toml").write_text(
        'name = "t"\nsecret = "fedcba9876543210fedcba9876543210"\n'
        'data.image_size = 16\nmodel = {name = "mlp", hidden = [8]}\nfederation = {clients = 3, rounds = 3}\n'
        f'{limit}[[attacks]]\nname = "hungry:Hungry"\n'
    )
    command = [sys.executable, "-c", LIMITED, "run", "s.toml", "--out", "run", "--device", "cpu", "-q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = RunFolder(tmp_path / "run").rows("reconstructions.jsonl")
    failed = [(row["round"], row["client"], row["error"].partition(":")[0]) for row in rows if row["error"]]
    assert failed == [(1, 1, "MemoryError"), (2, 1, "RuntimeError"), (3, 1, "RuntimeError")]
    assert "allocate memory" in next(row["error"] for row in rows if row["round"] == 2 and row["error"])
    assert len([row for row in rows if "psnr" in row["metrics"]]) == 6
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["rounds"], summary["attack_failures"], summary["client_errors"]) == (3, 3, 0)
    plain = api.run(
        parse_scenario(
            {
                "name": "t",
                "data": {"image_size": 16},
                "model": {"name": "mlp", "hidden": [8]},
                "federation": {"clients": 3, "rounds": 3},
            }
        ),
        out=tmp_path / "plain",
    )
    assert summary["model_sha256"] == plain.summary["model_sha256"]
