"""``fedleak attack --jobs | --ray``: the same results as in one process, only what is missing made again, no failure catching."""

import importlib
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from fedleak.again import runners
from fedleak.again.orders import fulfil
from fedleak.attacks.base import Attack, Reconstruction
from fedleak.errors import ScenarioError
from fedleak.events import Event
from fedleak.experiment import attack_again
from fedleak.experiment import run as api
from fedleak.experiment.attack_again import attack_run
from fedleak.experiment.result import Result
from fedleak.observation import Observation
from fedleak.report.html import write_report
from fedleak.runs.folder import RunFolder
from fedleak.sandbox.packing import Unpacked
from fedleak.scenario.schema import Scenario
from fedleak.threat import Knowledge

Build, Start = Callable[..., Scenario], Callable[..., Result]
Facts = Callable[[Path], Any]

SMALL = {"iterations": 2, "restarts": 1}
SECURE = {
    "defenses": [{"name": "secagg-view"}],
    "threat": {"defense_known": True},
    "federation": {"clients": 4, "clients_per_round": 3},
    "local": {"learning_rate": 1e-6},
    "data": {"shard_size": 1},  # the same image in every round, so that sums can be told apart
}
NOISE = {"defenses": [{"name": "gaussian-noise", "std": 1e-4}], "threat": {"defense_known": True}}
CASES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "one by one": ({}, [{"name": "dlg", "together": 1, **SMALL}, {"name": "analytic", "rounds": [1]}]),
    "by round": ({"local": {"batch_size": 2}}, [{"name": "inverting-gradients", "clients": 2, **SMALL}]),
    "a stream": ({}, [{"name": "dlg-fb", "success_loss": 1e9, **SMALL}, {"name": "idlg", "rounds": [2], **SMALL}]),
    "rounds remembered": (SECURE, [{"name": "cohort-difference", "rounds": [2, 3], **SMALL}]),
    "updates joined": (NOISE, [{"name": "adaptive", "base": "natural", "joined": 2, "rounds": [3], **SMALL}]),
    "BatchNorm": (
        {"model": {"name": "convnet", "width": 2}, "local": {"batch_size": 2}, "threat": {"preset": "batchnorm-known"}},
        [{"name": "grad-inversion", **SMALL}],
    ),
    "labels granted": ({"threat": {"preset": "labels-known"}}, [{"name": "mmse", "labels": "given", **SMALL}]),
}
QUICK = {"one by one", "by round", "a stream", "rounds remembered"}


class Here:
    """Does orders in this process, and remembers which; may be stopped after some."""

    orders: list[str] = []
    after: int | None = None
    backwards = False

    def __init__(self, jobs: int, threads: int, device: str) -> None:
        pass

    def run(self, orders: Any, folder: RunFolder, watcher: Any) -> None:
        for order in reversed(orders) if Here.backwards else orders:
            if Here.after is not None and len(Here.orders) == Here.after:
                raise KeyboardInterrupt
            watcher.at(order.name, "starting")
            Here.orders.append(order.name)
            unpacked = Unpacked((folder.path / runners.PLACE / runners.SHARED).read_bytes())
            spec, attack = unpacked.scenario.attacks[order.attack], unpacked.attacks()[order.attack]
            attackers = unpacked.attackers(order.device, order.threads, watched=True)

            def observed(name: str, unpacked: Unpacked = unpacked) -> Observation:
                return unpacked.complete(Observation.load(folder.path / "captures" / name))

            content = fulfil(order, spec, attack, attackers, observed)
            folder.replace_file(f"{runners.PLACE}/{order.name}.safetensors", content)
            watcher.done(order.name, None)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> type[Here]:
    Here.orders, Here.after, Here.backwards = [], None, False
    monkeypatch.setattr(runners, "OnCores", Here)
    return Here


@pytest.mark.parametrize("case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES])
def test_spread_gives_what_one_process_gives(
    build: Build, pair: Callable[..., tuple[Path, Path]], here: type[Here], facts: Facts, case: str
) -> None:
    tables, wanted = CASES[case]
    one, other = pair(**tables)
    specs = build(attacks=wanted).attacks
    attack_run(one, specs, device="cpu")
    here.backwards = True
    attack_run(other, specs, device="cpu", jobs=2)
    assert here.orders
    assert facts(other) == facts(one)
    assert RunFolder(other).manifest == RunFolder(one).manifest
    assert not (other / "again").exists()


def test_public_images_reach_the_workers(
    build: Build,
    pair: Callable[..., tuple[Path, Path]],
    here: type[Here],
    facts: Facts,
    plugin: Callable[[type[Attack]], type[Attack]],
    tmp_path: Path,
) -> None:
    class Likeness(Attack):
        name: ClassVar[str] = "likeness"
        requires: ClassVar[frozenset[Knowledge]] = frozenset({Knowledge.SURROGATE})

        def reconstruct(self, observation: Any, model: Any, **_: Any) -> Reconstruction:
            return Reconstruction(observation.surrogate.mean(0, keepdim=True))

    pixels = np.random.default_rng(1).integers(0, 256, (2, 4, 16, 16, 3), dtype=np.uint8)
    for split, images in zip(("train", "val"), pixels, strict=True):
        for number, image in enumerate(images):
            path = tmp_path / "images" / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    one, other = pair(data={"source": "imagefolder", "path": tmp_path / "images"}, threat={"preset": "surrogate-data"})
    specs = build(attacks=[{"name": plugin(Likeness).name}]).attacks
    attack_run(one, specs, device="cpu")
    attack_run(other, specs, device="cpu", jobs=2)
    assert len(here.orders) == 9
    rows = RunFolder(other).rows("reconstructions.jsonl")
    assert [row["error"] for row in rows if row["attack"] == "likeness"] == [None] * 9
    assert facts(other) == facts(one)


def test_what_goes_together_is_one_order_and_what_goes_in_order_is_one_for_all(
    build: Build, pair: Callable[..., tuple[Path, Path]], here: type[Here]
) -> None:
    one, _ = pair()
    wanted = [{"name": "dlg", "together": 1}, {"name": "idlg", "clients": 2}, {"name": "dlg-fb"}]
    attack_run(one, build(attacks=[{**spec, **SMALL} for spec in wanted]).attacks, device="cpu", jobs=2)
    single = [f"a0-r{r:03d}-c{c:03d}" for r in (1, 2, 3) for c in range(3)]
    assert sorted(here.orders) == sorted([*single, "a1-r001", "a1-r002", "a1-r003", "a2-all"])


def test_what_could_not_be_shown_to_an_attack_is_kept_as_in_one_process(
    build: Build,
    pair: Callable[..., tuple[Path, Path]],
    here: type[Here],
    facts: Facts,
    plugin: Callable[[type[Attack]], type[Attack]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Forgetful(Attack):
        name: ClassVar[str] = "forgetful"
        broken: ClassVar[bool] = True
        remembers = True

        def remember(self, observations: Any) -> None:
            if Forgetful.broken and observations[0].round != 2:
                raise RuntimeError("no\nroom")

        def reconstruct(self, observation: Any, model: Any, **_: Any) -> Reconstruction:
            return Reconstruction(torch.zeros(1, *observation.input.shape))

    one, other = pair()
    specs = build(attacks=[{"name": plugin(Forgetful).name}]).attacks
    told: dict[Path, list[Any]] = {one: [], other: []}
    for path, jobs in ((one, None), (other, 2)):
        with monkeypatch.context() as patch:
            patch.setattr(attack_again, "write_report", write_report)

            def listen(event: Event, path: Path = path) -> None:
                if event.kind == "problem":
                    told[path].append(event.facts)

            attack_run(path, specs, device="cpu", jobs=jobs, listener=listen)
        assert "could not be shown 2 rounds: RuntimeError: no room" in (path / "report.html").read_text()
    error = {"client": None, "attack": "forgetful", "error": "RuntimeError: no room"}
    assert told[one] == told[other] == [{"round": 1, **error}, {"round": 3, **error}]
    assert RunFolder(one).rows("problems.jsonl") == RunFolder(other).rows("problems.jsonl") == told[one]
    monkeypatch.setattr(Forgetful, "broken", False)
    for path, jobs in ((one, None), (other, 2)):
        attack_run(path, specs, device="cpu", jobs=jobs)
        assert RunFolder(path).rows("problems.jsonl") == []
    assert facts(one) == facts(other)


def test_after_an_interrupt_only_the_rest_is_made(
    build: Build, pair: Callable[..., tuple[Path, Path]], here: type[Here], facts: Facts
) -> None:
    one, other = pair()
    specs = build(attacks=[{"name": "analytic"}]).attacks
    attack_run(one, specs, device="cpu")
    here.after = 4
    with pytest.raises(KeyboardInterrupt):
        attack_run(other, specs, device="cpu", jobs=2)
    done = list(here.orders)
    kept = {
        (row["round"], row["client"]) for row in RunFolder(other).rows("reconstructions.jsonl") if row["attack"] == "analytic"
    }
    assert len(kept) == 4
    here.orders, here.after = [], None
    told: list[Event] = []
    attack_run(other, specs, device="cpu", jobs=2, listener=told.append)
    assert len(here.orders) == 5
    assert not set(here.orders) & set(done)
    assert [event.facts for event in told if event.kind == "orders"][0] == {"done": 4, "total": 9, "running": 0}
    assert facts(other) == facts(one)


def test_results_of_other_parameters_are_not_taken_and_a_finished_attack_starts_anew(
    build: Build, pair: Callable[..., tuple[Path, Path]], here: type[Here]
) -> None:
    one, _ = pair()
    first, second = (build(attacks=[{"name": "analytic", "iterations": n}]).attacks for n in (2, 3))
    here.after = 4
    with pytest.raises(KeyboardInterrupt):
        attack_run(one, first, device="cpu", jobs=2)
    for _ in range(2):
        here.orders, here.after = [], None
        attack_run(one, second, device="cpu", jobs=2)
        assert len(here.orders) == 9


PLUGIN = """
import torch
from fedleak.attacks.base import Attack, Reconstruction

class Shade(Attack):
    name = "shade"

    def reconstruct(self, observation, model, **_):
        return Reconstruction(torch.full((1, *observation.input.shape), 0.25))
"""
NETWORK = """
from torch import nn

def net(num_classes, input_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], num_classes))
"""


@pytest.mark.parametrize("edited", ["users_shade", "users_net", "torch"])
def test_after_an_interrupt_results_of_other_code_are_not_taken(
    build: Build,
    pair: Callable[..., tuple[Path, Path]],
    here: type[Here],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    edited: str,
) -> None:
    files = {name: tmp_path / f"{name}.py" for name in ("users_shade", "users_net")}
    for name, text in zip(files, (PLUGIN, NETWORK), strict=True):
        files[name].write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    one, _ = pair(model={"name": "users_net:net"}, attacks=[{"name": "users_shade:Shade", "clients": 1, "title": "first"}])
    specs = build(attacks=[{"name": "users_shade:Shade"}]).attacks
    here.after = 4
    with pytest.raises(KeyboardInterrupt):
        attack_run(one, specs, device="cpu", jobs=2, allow_code=True)
    if edited == "torch":
        monkeypatch.setattr(torch, "__version__", "99.0.0")
    else:
        files[edited].write_text(files[edited].read_text() + "\n# another\n")
    here.orders, here.after = [], None
    attack_run(one, specs, device="cpu", jobs=2, allow_code=True)
    assert len(here.orders) == 9


def test_what_is_kept_of_an_attack_is_its_owners_alone(
    build: Build, pair: Callable[..., tuple[Path, Path]], here: type[Here]
) -> None:
    one, _ = pair()
    here.after = 4
    before = os.umask(0o022)
    try:
        with pytest.raises(KeyboardInterrupt):
            attack_run(one, build(attacks=[{"name": "analytic"}]).attacks, device="cpu", jobs=2)
    finally:
        os.umask(before)
    found = list((one / "again").iterdir())
    assert len(found) == 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} == {0o600}


def test_a_damaged_result_is_made_again(
    build: Build, pair: Callable[..., tuple[Path, Path]], here: type[Here], facts: Facts
) -> None:
    one, other = pair()
    specs = build(attacks=[{"name": "analytic"}]).attacks
    attack_run(one, specs, device="cpu")
    here.after = 4
    with pytest.raises(KeyboardInterrupt):
        attack_run(other, specs, device="cpu", jobs=2)
    for name, damage in zip(here.orders, (b"", b"\x08\0\0\0\0\0\0\0{}      ", b"\xff" * 9), strict=False):
        (other / "again" / f"{name}.safetensors").write_bytes(damage)
    here.orders, here.after = [], None
    attack_run(other, specs, device="cpu", jobs=2)
    assert len(here.orders) == 8
    assert facts(other) == facts(one)


def test_clients_that_failed_are_told_of_as_in_one_process(
    build: Build, pair: Callable[..., tuple[Path, Path]], here: type[Here], facts: Facts
) -> None:
    folders = pair()
    for path in folders:
        folder = RunFolder(path)
        rows = folder.rows("rounds.jsonl")
        rows[2]["failures"] = [{"client": 1, "reason": "it was late"}]
        folder.drop_rows("rounds.jsonl", lambda row: True)
        folder.append("rounds.jsonl", rows)
        (path / "captures" / "r002-c001.safetensors").unlink()
    specs = build(attacks=[{"name": "analytic"}]).attacks
    attack_run(folders[0], specs, device="cpu")
    attack_run(folders[1], specs, device="cpu", jobs=2)
    assert facts(folders[0]) == facts(folders[1])


@pytest.mark.parametrize("jobs", [None, 2])
def test_one_attack_at_a_time_and_the_lock_stays(
    build: Build, pair: Callable[..., tuple[Path, Path]], here: type[Here], facts: Facts, jobs: int | None
) -> None:
    one, other = pair()
    specs = build(attacks=[{"name": "analytic"}]).attacks
    (one / "again.jsonl").write_text("of the other\n")
    with RunFolder(one).alone(), pytest.raises(ScenarioError, match="another run or attack is at work there"):
        attack_run(one, specs, device="cpu", jobs=jobs)
    assert (one / "again.jsonl").read_text() == "of the other\n"
    (one / "again.jsonl").unlink()
    assert facts(one) == facts(other)

    def taken(event: Event) -> None:
        if event.kind == "graded":
            with pytest.raises(ScenarioError, match="at work there"), RunFolder(one).alone():
                pass
            seen.append(event)

    seen: list[Event] = []
    inode = (one / "run.lock").stat().st_ino
    attack_run(one, specs, device="cpu", jobs=jobs, listener=taken)
    assert len(seen) == 9
    assert (one / "run.lock").stat().st_ino == inode
    assert not (one / "again").exists()


def test_a_run_that_is_attacked_is_not_gone_on_with(build: Build, start: Start) -> None:
    def stop(event: Event) -> None:
        if event.kind == "round-done" and event.facts["round"] == 1:
            raise KeyboardInterrupt

    path = start(build()).path.parent / "stopped"
    with pytest.raises(KeyboardInterrupt):
        api.run(build(), out=path, device="cpu", listener=stop)
    before = (path / "manifest.json").read_bytes()
    with RunFolder(path).alone(), pytest.raises(ScenarioError, match="another run or attack is at work there"):
        api.run(build(), resume=path, device="cpu")
    assert (path / "manifest.json").read_bytes() == before
    assert api.run(build(), resume=path, device="cpu").summary["rounds"] == 2


def test_no_cluster_changes_nothing(build: Build, pair: Callable[..., tuple[Path, Path]], facts: Facts) -> None:
    one, other = pair()
    specs = build(attacks=[{"name": "dlg", **SMALL}]).attacks
    with pytest.raises(ScenarioError, match="no Ray cluster there"):
        attack_run(one, specs, device="cpu", ray="127.0.0.1:1")
    assert facts(one) == facts(other)
    assert RunFolder(one).manifest == RunFolder(other).manifest
    assert not (one / "again").exists()
