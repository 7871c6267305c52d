"""A run that was cut off goes on to the same numbers, with any strategy."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedleak.errors import ScenarioError
from fedleak.events import Event
from fedleak.experiment import run as api
from fedleak.experiment.manifest import write_summary
from fedleak.experiment.result import Result
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import Scenario, parse_scenario
from fedleak.server import app as server_app
from fedleak.server.strategies import strategy_names

Build, Start = Callable[..., Scenario], Callable[..., Result]
Facts = Callable[[Path], Any]
NORMALISED = {"name": "convnet", "width": 2, "norm": "batch"}
PARAMETERS: dict[str, dict[str, Any]] = {
    "FedAvgM": {"server_momentum": 0.9, "server_learning_rate": 0.5},
    "FedProx": {"proximal_mu": 0.5},
    "FedAdam": {"eta": 0.01},
    "FedYogi": {"eta": 0.01},
    "FedAdagrad": {"eta": 0.01},
    "MultiKrum": {"num_nodes_to_select": 2},
    "FedTrimmedAvg": {"beta": 0.34},
    "DifferentialPrivacyServerSideFixedClipping": {"noise_multiplier": 0.1, "clipping_norm": 1.0},
    "DifferentialPrivacyServerSideAdaptiveClipping": {"noise_multiplier": 0.1},
}


class Stop:
    """Interrupt at the n-th event of a kind."""

    def __init__(self, kind: str, number: int) -> None:
        self.kind, self.left = kind, number

    def __call__(self, event: Event) -> None:
        self.left -= event.kind == self.kind
        if self.left == 0 and event.kind == self.kind:
            raise KeyboardInterrupt


@pytest.fixture
def interrupted(tmp_path: Path, quick: None) -> Callable[..., Path]:
    def run(scenario: Scenario, stop: Callable[[Event], None]) -> Path:
        out = tmp_path / "interrupted"
        with pytest.raises(KeyboardInterrupt):
            api.run(scenario, out=out, device="cpu", listener=stop)
        assert (out / "summary.json").exists()
        return out

    return run


@pytest.mark.parametrize("protocol", ["fedsgd", pytest.param("fedavg", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("kind", "number"),
    [
        *(("round", 1), ("attack", 5), ("graded", 8), ("round-done", 2)),
        *(pytest.param(*last, marks=pytest.mark.slow) for last in (("round", 3), ("graded", 1), ("graded", 18), ("progress", 9))),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_folder(
    build: Build, start: Start, interrupted: Callable[..., Path], facts: Facts, grey: str, protocol: str, kind: str, number: int
) -> None:
    attacks = [{"name": grey}, {"name": "inverting-gradients", "iterations": 1}]
    scenario = build(federation={"protocol": protocol, "rounds": 3}, local={"batch_size": 3}, attacks=attacks)
    straight = start(scenario)
    out = interrupted(scenario, Stop(kind, number))
    resumed = api.run(scenario, resume=out, device="cpu")
    assert facts(resumed.path) == facts(straight.path)
    (out / "report.html").touch()  # left out of these tests
    with pytest.raises(ScenarioError, match="all 3 rounds are done"):
        api.run(scenario, resume=out)


@pytest.mark.parametrize("stage", ["before the checkpoint", "after the checkpoint"])
def test_a_kill_beside_the_checkpoint_loses_and_doubles_nothing(
    build: Build, start: Start, tmp_path: Path, facts: Facts, grey: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = build(attacks=[{"name": grey}])
    straight, save = start(scenario), RunFolder.save_checkpoint

    def killed(folder: RunFolder, server_round: int, arrays: Any, state: Any) -> None:
        if server_round == 1 and stage == "before the checkpoint":
            raise KeyboardInterrupt
        save(folder, server_round, arrays, state)
        if server_round == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            api.run(scenario, out=tmp_path / "killed", device="cpu")
    with (tmp_path / "killed" / "reconstructions.jsonl").open("a") as file:
        file.write('{"round": 2, "cli')
    (tmp_path / "killed" / "images" / "r002-c000-truth-0.png").write_bytes(b"torn")
    (tmp_path / "killed" / "captures" / "r002-c000.tmp").write_bytes(b"torn")
    api.run(scenario, resume=tmp_path / "killed", device="cpu")
    assert facts(tmp_path / "killed") == facts(straight.path)


@pytest.mark.parametrize(
    "model", [{"name": "mlp", "hidden": [8]}, pytest.param(NORMALISED, marks=pytest.mark.slow)], ids=["mlp", "batchnorm"]
)
@pytest.mark.parametrize("name", strategy_names())
def test_every_strategy_trains_and_resumes_to_the_same_bits(
    build: Build, start: Start, interrupted: Callable[..., Path], name: str, model: dict[str, Any]
) -> None:
    strategy = {"name": name, **PARAMETERS.get(name, {})}
    federation = {"protocol": "fedavg", "strategy": strategy, "rounds": 3}
    scenario = build(model=model, federation=federation, local={"batch_size": 4}, server={"curious": False})
    straight = start(scenario)
    assert straight.summary["client_errors"] == 0
    digests = [straight.summary["model_sha256"]]
    out = interrupted(scenario, Stop("round-done", 2))
    first = write_summary(RunFolder.open(out))["model_sha256"]
    digests.append(api.run(scenario, resume=out, device="cpu").summary["model_sha256"])
    assert digests[0] == digests[1] != first
    arrays = server_app.final_model(RunFolder.open(out))
    assert all(str(arrays[key].dtype) == "int64" and arrays[key].shape == () for key in arrays if "num_batches" in key)
    assert any("num_batches" in key for key in arrays) == (model is NORMALISED)


def test_a_folder_without_a_whole_round_is_refused(build: Build, tmp_path: Path) -> None:
    scenario = build()
    facts = {"scenario": scenario.model_dump(mode="json"), "digest": scenario.digest, "engine": "inprocess"}
    RunFolder.create(tmp_path / "new", facts)
    with pytest.raises(ScenarioError, match="no whole round was finished"):
        api.run(build(), resume=tmp_path / "new")
    with pytest.raises(ScenarioError, match="no run folder"):
        api.run(build(), resume=tmp_path)


TOML = """
name = "killed"
secret = "fedcba9876543210fedcba9876543210"
data.image_size = 16
model = {name = "mlp", hidden = [8]}
federation.clients = 3
federation.rounds = 400
attacks = [{name = "inverting-gradients", iterations = 3}]
"""


def begin(tmp_path: Path, done: str) -> subprocess.Popen[str]:
    """Start a run in a process of its own, and wait until it has written ``done``."""
    (tmp_path / "s.toml").write_text(TOML)
    command = [
        sys.executable,
        "-c",
        "from fedleak.cli.app import main; main()",
        "run",
        "s.toml",
        "--out",
        "out",
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, text=True, stderr=subprocess.PIPE, preexec_fn=_listen_to_ctrl_c
    )
    deadline = time.monotonic() + 120
    rounds = tmp_path / "out" / "rounds.jsonl"
    while not (rounds.exists() and done in rounds.read_text()):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def _listen_to_ctrl_c() -> None:
    """Undo what a shell does to its background jobs, which the tests may be: they ignore Ctrl-C, and so do their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_a_killed_process_leaves_a_folder_that_goes_on(tmp_path: Path, facts: Facts, quick: None) -> None:
    process = begin(tmp_path, '"round": 2')
    process.kill()
    process.wait(30)
    manifest = RunFolder.open(tmp_path / "out").manifest
    manifest["scenario"]["federation"]["rounds"] = rounds = len(RunFolder.open(tmp_path / "out").rows("rounds.jsonl")) + 1
    manifest["digest"] = parse_scenario(manifest["scenario"]).digest
    RunFolder.open(tmp_path / "out").write_json("manifest.json", manifest)
    scenario = RunFolder.open(tmp_path / "out").scenario
    api.run(scenario, resume=tmp_path / "out", device="cpu")
    own = scenario.model_copy(update={"secret": tomllib.loads(TOML)["secret"]})  # the folder's knows its fingerprint alone
    straight = api.run(own, out=tmp_path / "straight", device="cpu")
    resumed, expected = facts(tmp_path / "out"), facts(straight.path)
    assert resumed[1:] == expected[1:]
    assert resumed[0] | {"digest": ""} == expected[0] | {"digest": ""}
    assert expected[0]["rounds"] == rounds


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_done_and_exits_with_130(tmp_path: Path) -> None:
    process = begin(tmp_path, '"round": 2')  # whose line comes after the checkpoint of round 1
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "fedleak run --resume out" in told
    assert "Traceback" not in told
    folder = RunFolder.open(tmp_path / "out")
    done, _, _ = folder.load_checkpoint()
    assert done >= 1
    assert "<html" in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "summary.json").exists()


def test_a_defense_that_lost_what_it_held_back_is_not_gone_on_with(build: Build, start: Start) -> None:
    whole = start(build(federation={"rounds": 2}, defenses=[{"name": "deep-gradient-compression", "ratio": 0.5}]))
    manifest = json.loads((whole.path / "manifest.json").read_text())
    manifest["scenario"]["federation"]["rounds"] = 3
    manifest["digest"] = Scenario.model_validate(manifest["scenario"]).digest
    (whole.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ScenarioError, match="deep-gradient-compression.*run the scenario anew"):
        api.run(resume=whole.path)
