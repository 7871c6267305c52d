"""Attacks in a process of their own, in whole runs: the same figures, and a plugin that looks around finds nothing."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedleak.errors import ScenarioError
from fedleak.experiment import run as api
from fedleak.experiment.attack_again import attack_run
from fedleak.experiment.result import Result
from fedleak.observation import Observation
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import AttackSpec, Scenario

Build, Start = Callable[..., Scenario], Callable[..., Result]
Facts = Callable[[Path], Any]

SNEAK = '''
import gc, json, os, sys
import torch
from fedleak.attacks.base import Attack, Reconstruction

ROOMS = ("fedleak.client", "fedleak.data", "fedleak.runs", "fedleak.engines", "fedleak.server")

class Sneak(Attack):
    """Tries the ways that lead to the clients where an attack shares their process."""

    name = "sneak"

    def reconstruct(self, observation, model, *, rng, device, budget):
        found = []
        for one in gc.get_objects():
            kind = type(one)
            if str(kind.__module__).startswith(ROOMS):
                found.append(f"object {kind.__module__}.{kind.__name__}")
        frame = sys._getframe()
        while frame is not None:
            found += [f"frame {name}" for name in ("folder", "data", "grid", "directory", "serving") if name in frame.f_locals]
            frame = frame.f_back
        owner = getattr(budget.on_progress, "__self__", None)
        found += [f"owner {name}" for name in vars(owner)] if owner is not None and hasattr(owner, "__dict__") else []
        places = [os.getcwd(), *sys.argv, *os.environ.values()]
        for name in os.listdir("/proc/self/fd"):
            path = f"/proc/self/fd/{name}"
            places += [os.readlink(path)] if os.path.lexists(path) else []
        found += [f"place {place}" for place in places if "folder-of-this-run" in place]
        from fedleak.defenses.gaussian_noise import GaussianNoise
        GaussianNoise.on_update = lambda self, update, situation: update  # the next round would be sent undefended
        torch.manual_seed(0)
        images = torch.zeros(observation.batch_size, *observation.input.shape)
        return Reconstruction(images, method=json.dumps(sorted(set(found))))

class Hangs(Attack):
    name = "hangs"

    def reconstruct(self, observation, model, **_):
        import time
        time.sleep(1000)
'''


@pytest.fixture
def sneak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of attacks that no test imports itself."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "users_sneak.py").write_text(SNEAK)
    monkeypatch.syspath_prepend(tmp_path / "plugins")
    importlib.invalidate_caches()
    return "users_sneak"


APART = {"isolation": "process"}
NOISE = {"defenses": [{"name": "gaussian-noise", "std": 0.01}]}


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


def test_a_plugin_that_looks_around_finds_nothing_and_changes_nothing(
    build: Build, tmp_path: Path, sneak: str, quick: None
) -> None:
    folder = tmp_path / "folder-of-this-run"
    asked = build(attacks=[{"name": f"{sneak}:Sneak"}], server=APART, **NOISE)
    result = api.run(asked, out=folder, device="cpu")
    rows = result.reconstructions
    assert len(rows) == 6
    assert [json.loads(row["method"]) for row in rows] == [[]] * 6
    plain = api.run(build(attacks=[], **NOISE), out=tmp_path / "plain", device="cpu")
    assert updates(folder) == updates(plain.path)
    assert len(updates(folder)) == 6
    assert result.summary["model_sha256"] == plain.summary["model_sha256"]


def test_the_same_plugin_does_find_them_in_the_server_s_own_process(
    build: Build, tmp_path: Path, sneak: str, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedleak.defenses.gaussian_noise import GaussianNoise

    monkeypatch.setattr(GaussianNoise, "on_update", GaussianNoise.on_update)  # put back what the plugin patches
    asked = build(attacks=[{"name": f"{sneak}:Sneak"}], server={"isolation": "none"}, **NOISE)
    result = api.run(asked, out=tmp_path / "folder-of-this-run", device="cpu")
    assert all(json.loads(row["method"]) for row in result.reconstructions)


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


def test_a_finished_run_is_attacked_again_apart(build: Build, start: Start, sneak: str) -> None:
    result = start(build(attacks=[{"name": "analytic"}], server=APART))
    again = attack_run(result.path, [AttackSpec(name=f"{sneak}:Sneak")], device="cpu")
    rows = [row for row in again.reconstructions if row["attack"] == "Sneak"]
    assert [json.loads(row["method"]) for row in rows] == [[]] * 6


@pytest.mark.slow
def test_a_plugin_finds_nothing_on_ray_either(build: Build, tmp_path: Path, sneak: str) -> None:
    asked = build(attacks=[{"name": f"{sneak}:Sneak"}], server=APART, federation={"engine": "ray"}, **NOISE)
    result = api.run(asked, out=tmp_path / "folder-of-this-run", device="cpu")
    assert [json.loads(row["method"]) for row in result.reconstructions] == [[]] * 6
