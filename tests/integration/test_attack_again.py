"""``fedleak attack RUN``: a finished or interrupted run's captures are attacked again, without the federation."""

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedleak.attacks.base import Attack
from fedleak.client import training
from fedleak.errors import ScenarioError
from fedleak.events import Event
from fedleak.experiment import attack_again
from fedleak.experiment import run as api
from fedleak.experiment.attack_again import attack_run
from fedleak.experiment.result import Result
from fedleak.report.html import write_report
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import Scenario

Build, Start = Callable[..., Scenario], Callable[..., Result]
Facts = Callable[[Path], Any]


def by_attack(result: Result, name: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in result.reconstructions if row["attack"] == name]


def test_an_attack_added_later_gives_the_rows_that_it_would_have_given(
    build: Build, start: Start, grey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"name": "inverting-gradients", "iterations": 2}
    both = start(build(local={"batch_size": 2}, attacks=[{"name": grey}, other]))
    one = start(build(local={"batch_size": 2}, attacks=[{"name": grey}]))
    before = by_attack(one, grey)

    def no_training(*_: Any, **__: Any) -> None:
        pytest.fail("a client trained")

    monkeypatch.setattr(training, "train", no_training)
    monkeypatch.setattr(api, "write_report", write_report)
    monkeypatch.setattr(attack_again, "write_report", write_report)
    [spec] = build(attacks=[other]).attacks
    again = attack_run(one.path, [spec], device="cpu")
    assert by_attack(again, other["name"]) == by_attack(both, other["name"])
    assert by_attack(again, grey) == before
    assert [entry["attack"] for entry in again.summary["leakage"]] == [grey, other["name"]]
    assert again.summary["model_sha256"] == both.summary["model_sha256"]
    assert [spec["name"] for spec in RunFolder.open(one.path).manifest["scenario"]["attacks"]] == [grey, other["name"]]
    assert other["name"] in (one.path / "report.html").read_text()


def test_an_attack_that_the_run_holds_is_replaced_not_doubled(build: Build, start: Start, grey: str) -> None:
    result = start(build(local={"batch_size": 2}, attacks=[{"name": grey}]))
    [spec] = build(attacks=[{"name": grey, "restarts": 5, "clients": 1}]).attacks
    again = attack_run(result.path, [spec], device="cpu")
    assert [(row["round"], row["client"]) for row in again.reconstructions] == [(1, 0), (1, 0), (2, 0), (2, 0)]
    assert RunFolder.open(result.path).scenario.attacks[0].model_extra == {"restarts": 5}


def test_clients_that_failed_are_told_of_again(build: Build, start: Start, grey: str) -> None:
    result = start(build(attacks=[{"name": grey}]))
    folder = RunFolder.open(result.path)
    rows = folder.rows("rounds.jsonl")
    rows[2]["failures"] = [{"client": 1, "reason": "it was late"}]
    folder.drop_rows("rounds.jsonl", lambda row: True)
    folder.append("rounds.jsonl", rows)
    (folder.path / "captures" / "r002-c001.safetensors").unlink()
    again = attack_run(result.path, [grey], device="cpu")
    [row] = [row for row in again.reconstructions if row["error"]]
    assert (row["round"], row["client"], row["flags"]) == (2, 1, ["invalid-reply"])
    assert "it was late" in row["error"]
    assert again.summary["attack_failures"] == 0


def test_an_interrupted_run_can_be_attacked_and_still_goes_on(
    build: Build, start: Start, tmp_path: Path, facts: Facts, grey: str
) -> None:
    def stop(event: Event) -> None:
        if event.kind == "graded" and event.facts["round"] == 2:
            raise KeyboardInterrupt

    scenario = build(attacks=[{"name": grey}])
    with pytest.raises(KeyboardInterrupt):
        api.run(scenario, out=tmp_path / "cut", device="cpu", listener=stop)
    attack_run(tmp_path / "cut", [grey], device="cpu")
    api.run(scenario, resume=tmp_path / "cut", device="cpu")
    assert facts(tmp_path / "cut") == facts(start(scenario).path)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("dgl", "did you mean 'dlg'"),
        ({"name": "dlg", "labels": "given"}, "does not grant"),
        ({"name": "dlg", "rounds": [9]}, "round 9"),
    ],
)
def test_what_cannot_run_is_refused_and_nothing_is_lost(build: Build, start: Start, grey: str, spec: Any, told: str) -> None:
    result = start(build(attacks=[{"name": grey}]))
    rows = result.reconstructions
    wanted = spec if isinstance(spec, str) else build(attacks=[spec]).attacks[0]
    with pytest.raises(ScenarioError, match=told):
        attack_run(result.path, [wanted], device="cpu")
    assert result.reconstructions == rows


def test_a_run_that_was_not_curious_holds_nothing_to_attack(build: Build, start: Start) -> None:
    result = start(build(server={"curious": False}))
    with pytest.raises(ScenarioError, match="not curious"):
        attack_run(result.path, ["dlg"])


def test_threads_are_put_back(build: Build, start: Start, grey: str) -> None:
    threads = torch.get_num_threads()
    result = start(build(attacks=[{"name": grey}]), threads=2)
    assert issubclass(api.attacks.get(grey), Attack)
    attack_run(result.path, [grey], device="cpu", threads=2)
    assert torch.get_num_threads() == threads


def test_an_interrupt_keeps_the_rows_that_have_no_new_ones(build: Build, start: Start, grey: str) -> None:
    result = start(build(attacks=[{"name": grey}]))
    before = result.reconstructions
    graded = 0

    def interrupt(event: Event) -> None:
        nonlocal graded
        graded += event.kind == "graded"
        if graded == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack_run(result.path, [grey], device="cpu", listener=interrupt)
    after = Result(result.path, {}).reconstructions
    key = operator.itemgetter("round", "client", "example")
    assert sorted(map(key, after)) == sorted(map(key, before))
    assert not (result.path / "again.jsonl").exists()
