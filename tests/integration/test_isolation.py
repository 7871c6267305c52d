"""Attacks in a process of their own, in whole runs: the same figures, and a plugin that looks around finds nothing."""

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedleak.client import mod
from fedleak.deploy.services import Layout, Services
from fedleak.errors import ScenarioError
from fedleak.experiment import run as api
from fedleak.experiment.attack_again import attack_run
from fedleak.experiment.result import Result
from fedleak.observation import Observation
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import AttackSpec, Scenario
from fedleak.scenario.secret import KEPT, place
from fedleak.seeding import Seed

Build, Start = Callable[..., Scenario], Callable[..., Result]
Facts = Callable[[Path], Any]

HANGS = """
import time
from fedleak.attacks.base import Attack

class Hangs(Attack):
    name = "hangs"

    def reconstruct(self, observation, model, **_):
        time.sleep(1000)
"""


@pytest.fixture
def sneak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of attacks that no other test imports."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "users_sneak.py").write_text((Path(__file__).parent / "wall_sneak.py").read_text() + HANGS)
    monkeypatch.syspath_prepend(tmp_path / "plugins")
    # Services and the workers of a sweep import what this process can.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "plugins"), os.environ.get("PYTHONPATH", "")]))
    importlib.invalidate_caches()
    return "users_sneak"


APART = {"isolation": "process"}
# What must not be found; wall_sneak.py has the same.
FOLDER, SCENARIO, SECRET = "folder-of-this-run", "scenario-of-this-run", "5ec2e70123456789abcdef0123456789"
NOISE = {"defenses": [{"name": "gaussian-noise", "std": 0.7531246}]}
HIDDEN: dict[str, Any] = {"name": SCENARIO, "secret": SECRET, "seed": 7, **NOISE}


def found(rows: list[dict[str, Any]]) -> list[str]:
    """What the plugin told of all its strikes."""
    assert rows
    assert [row["error"] for row in rows] == [None] * len(rows)
    return sorted({what for row in rows for what in json.loads(row["method"])})


def updates(path: Path) -> list[bytes]:
    return [b"".join(v.numpy().tobytes() for v in Observation.load(one).update.values()) for one in RunFolder(path).captures()]


def test_the_figures_are_those_of_one_process(build: Build, start: Start, facts: Facts) -> None:
    attacks = [{"name": "analytic"}, {"name": "dlg", "iterations": 3}, {"name": "dlg-fb", "iterations": 2, "success_loss": 1e9}]
    here, apart = (start(build(attacks=attacks, server={"isolation": how})).path for how in ("none", "process"))
    (one, rows, files, images), (other, more, same, pictures) = facts(here), facts(apart)
    assert (rows, files, images) == (more, same, pictures)
    assert one == other
    assert RunFolder(here).manifest["digest"] == RunFolder(apart).manifest["digest"]


def test_what_a_remembering_attack_saw_lasts_over_the_rounds(build: Build, start: Start, facts: Facts) -> None:
    tables: dict[str, Any] = {
        "attacks": [{"name": "cohort-difference", "rounds": [2, 3], "iterations": 2}],
        "defenses": [{"name": "secagg-view"}],
        "threat": {"defense_known": True},
        "federation": {"clients": 4, "clients_per_round": 3, "rounds": 3},
        "local": {"learning_rate": 1e-6},
        "data": {"shard_size": 1},
    }
    here, apart = (start(build(**tables, server={"isolation": how})).path for how in ("none", "process"))
    assert facts(here)[1] == facts(apart)[1]


def test_a_plugin_that_tries_every_way_finds_nothing_and_changes_nothing(
    build: Build, tmp_path: Path, sneak: str, quick: None
) -> None:
    result = api.run(build(attacks=[{"name": f"{sneak}:Sneak"}], server=APART, **HIDDEN), out=tmp_path / FOLDER, device="cpu")
    assert found(result.reconstructions) == []
    assert len(result.reconstructions) == 6
    plain = api.run(build(attacks=[], **HIDDEN), out=tmp_path / "plain", device="cpu")
    assert updates(tmp_path / FOLDER) == updates(plain.path)
    assert len(updates(plain.path)) == 6
    assert result.summary["model_sha256"] == plain.summary["model_sha256"]


def test_the_same_plugin_does_find_them_in_the_server_s_own_process(
    build: Build, tmp_path: Path, sneak: str, quick: None
) -> None:
    asked = build(attacks=[{"name": f"{sneak}:Looks"}], server={"isolation": "none"}, **HIDDEN)
    there = found(api.run(asked, out=tmp_path / FOLDER, device="cpu").reconstructions)
    ways = {what.partition(":")[0] for what in there}
    assert {"objects", "modules", "frames", "owner"} <= ways
    assert any("secret in" in what for what in there)
    assert any("folder" in what for what in there)


def test_noise_of_a_seed_that_can_be_guessed_is_found_by_it(
    build: Build, tmp_path: Path, sneak: str, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As it was: clients drew from the scenario's small number.
    monkeypatch.setattr(mod, "clients_seed", lambda secret, seed: Seed(seed))
    mod._chain.cache_clear()
    asked = build(attacks=[{"name": f"{sneak}:Sneak"}], server=APART, **HIDDEN)
    there = found(api.run(asked, out=tmp_path / FOLDER, device="cpu").reconstructions)
    mod._chain.cache_clear()
    assert there
    assert all(what.startswith("seed: noise of") for what in there)


def test_no_true_image_is_on_the_disk_while_attacks_of_its_round_run(build: Build, tmp_path: Path, quick: None) -> None:
    out, seen = tmp_path / "run", list[int]()

    def listen(event: Any) -> None:
        if event.kind == "attack" and event.facts["round"] == 1:
            seen.append(len(list((out / "images").glob("*-truth-*"))))

    api.run(build(attacks=[{"name": "analytic"}, {"name": "dlg", "iterations": 1}]), out=out, device="cpu", listener=listen)
    assert seen
    assert set(seen) == {0}
    assert len(list((out / "images").glob("r001-*-truth-*"))) == 3


def test_one_that_hangs_in_native_code_is_a_row_and_the_next_round_is_attacked(build: Build, start: Start, sneak: str) -> None:
    attacks = [{"name": f"{sneak}:Hangs", "clients": 1, "rounds": [1]}, {"name": "analytic"}]
    result = start(build(attacks=attacks, server={**APART, "attack_limit": 4.0}))
    errors = [row["error"] for row in result.reconstructions if row["attack"] == "Hangs"]
    assert len(errors) == 1
    assert "its process was ended" in errors[0]
    assert [row["error"] for row in result.reconstructions if row["attack"] == "analytic"] == [None] * 6


def test_an_attack_of_this_process_alone_is_refused_before_anything_starts(build: Build, tmp_path: Path, grey: str) -> None:
    with pytest.raises(ScenarioError, match="registered in this process alone") as raised:
        api.run(build(attacks=[{"name": grey}], server=APART), out=tmp_path / "run", device="cpu")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "spread", [{}, {"jobs": 2}, pytest.param({"ray": "local"}, marks=pytest.mark.slow)], ids=["here", "jobs", "ray"]
)
def test_nor_does_it_when_a_finished_run_is_attacked_again(
    build: Build, tmp_path: Path, sneak: str, quick: None, spread: dict[str, Any]
) -> None:
    api.run(build(attacks=[], server=APART, **HIDDEN), out=tmp_path / FOLDER, device="cpu")
    again = attack_run(tmp_path / FOLDER, [AttackSpec(name=f"{sneak}:Sneak")], device="cpu", **spread)
    assert found(again.reconstructions) == []
    assert len(again.reconstructions) == 6


@pytest.mark.slow
def test_nor_on_ray(build: Build, tmp_path: Path, sneak: str, quick: None) -> None:
    tables = {**HIDDEN, "server": APART, "federation": {"engine": "ray"}}
    result = api.run(build(attacks=[{"name": f"{sneak}:Sneak"}], **tables), out=tmp_path / FOLDER, device="cpu")
    assert found(result.reconstructions) == []
    plain = api.run(build(attacks=[], **HIDDEN), out=tmp_path / "plain", device="cpu")
    assert updates(tmp_path / FOLDER) == updates(plain.path)


@pytest.mark.slow
def test_nor_on_a_superlink(build: Build, tmp_path: Path, sneak: str, quick: None) -> None:
    expected = api.run(build(attacks=[], **HIDDEN), out=tmp_path / "plain", device="cpu")
    with Services(Layout(tmp_path / "keys", tmp_path / "runs", insecure=True, clients=3)) as services:
        place(services.secrets, SECRET, named=True)
        federation = {"engine": "deployment", "superlink": services.superlink.model_dump(mode="json"), "timeout": 300.0}
        asked = build(attacks=[{"name": f"{sneak}:Sneak"}], server=APART, **HIDDEN, federation=federation)
        result = api.run(asked, out=tmp_path / FOLDER, device="cpu")
    assert found(result.reconstructions) == []
    assert updates(tmp_path / FOLDER) == updates(expected.path)
    assert not (tmp_path / FOLDER / KEPT).exists()
    held = [path for path in (tmp_path / FOLDER).rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert held == []
