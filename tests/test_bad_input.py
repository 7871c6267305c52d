"""Every mistake a newcomer makes gives one line on stderr and exit code 2, before anything starts."""

# ruff: noqa: E501 (a case is a line)
from __future__ import annotations

import io
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fedleak.cli import app as cli
from fedleak.scenario.schema import parse_scenario

USERS_MODULE = """
from torch import nn
def raises(num_classes): raise OSError("disk\\non fire")
def no_module(num_classes): return 3
def wrong_shape(input_shape): return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 7))
class NoAttack: pass
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run the command line in an empty folder; return its exit code and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "users_own.py").write_text(USERS_MODULE)
    (tmp_path / "broken.py").write_text("raise KeyError('x')\n")
    (tmp_path / "no_python.py").write_text("def (\n")
    monkeypatch.delitem(sys.modules, "users_own", raising=False)

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fedleak", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0, capsys.readouterr().err

    return call


@pytest.fixture
def refused(command, tmp_path):
    """Check that a scenario is refused with one line, and leaves nothing behind."""

    def check(text: str, message: str, *options: str) -> None:
        (tmp_path / "s.toml").write_text('name = "x"\n' + text)
        code, error = command("run", "s.toml", *options)
        assert code == 2, error
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert "Traceback" not in error
        assert message in error
        assert not (tmp_path / "runs").exists()

    return check


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[attacks]]\nname='dgl'", "attacks[0].name: unknown attack 'dgl'; did you mean 'dlg'?"),
        ("[[attacks]]\nname='dlg'\nrestart=1", "attacks[0].restart: unknown key for attack 'dlg'; did you mean 'restarts'?"),
        ("[[attacks]]\nname='dlg'\nround=[1]", "attacks[0].round: unknown key for attack 'dlg'; did you mean 'rounds'?"),
        ("[[attacks]]\nname='dlg'\nrestarts='3'", "attacks[0].restarts: expected a whole number of at least 1, got '3'"),
        ("[[attacks]]\nname='dlg'\nlabels='idgl'", "attacks[0].labels: unknown label rule 'idgl'; did you mean 'idlg'?"),
        ("[[attacks]]\nname='closed-form'\nlabels='joint'", "attacks[0].labels: 'joint' optimises labels together with the images, which 'closed-form' cannot"),
        ("[[attacks]]\nname='dlg'\nlabels='given'", "label rule 'given' needs knowledge that the threat model does not grant: labels; set threat.preset to one of: labels-known, batchnorm-known, surrogate-data"),
        ("[[attacks]]\nname='dlg'\n[threat]\npreset='updates-only'", "attack 'dlg' needs knowledge that the threat model does not grant: local-training; set threat.preset to one of: local-training-known"),
        ("[[attacks]]\nname='dlg'\nrounds=[4]", "attacks[0].rounds: round 4 comes after the last one, federation.rounds = 3"),
        ("[[attacks]]\nname='dlg'\n[[attacks]]\nname='dlg'", 'attacks[1]: attacks[0] is called \'dlg\' in the results too; give one of them a name of its own, such as title = "dlg-2"'),
        ("[[attacks]]\nname='users_own:NoAttack'", "is no subclass of fedleak.attacks.base.Attack"),
        ("[[defenses]]\nname='gausian-noise'", "defenses[0].name: unknown defense 'gausian-noise'; did you mean 'gaussian-noise'?"),
        ("[[defenses]]\nname='gaussian-noise'\nstdd=1", "defenses[0].stdd: unknown key for defense 'gaussian-noise'; did you mean 'std'?"),
        ("[[defenses]]\nname='gradient-pruning'", "defenses[0].ratio: missing; expected a number of at least 0 and below 1"),
        ("[data]\nsource='cifar'", "data.source: unknown data source 'cifar'; did you mean 'cifar10'?"),
        ("[data]\npartition='dirichelt'", "data.partition: unknown partitioner 'dirichelt'; did you mean 'dirichlet'?"),
        ("[data.partition]\nname='dirichlet'\nalfa=1", "data.partition.alfa: 'dirichlet' has no such parameter; did you mean 'alpha'?"),
        ("[data]\nsource='imagefolder'", "data.path: data.source 'imagefolder' needs it"),
        ("[data]\nsource='imagefolder'\npath='nowhere'", "nowhere: no such folder"),
        ("[data]\nsource='parquet'\npath='.'", "no train*.parquet in it"),
        ("[federation]\nclients=21", "federation.clients: 21 clients, but data.source 'samples' has only 20 training images"),
        ("[federation]\nengine='deployment'", "federation.superlink: engine 'deployment' needs the address of a SuperLink"),
        ("[federation]\nstrategy='FedAdam'", "federation.strategy: 'FedAdam' takes weights, but the protocol sends gradients"),
        ("[federation]\nprotocol='fedavg'\nstrategy='FedAvgg'", "unknown strategy 'FedAvgg'; did you mean 'FedAvg'? Known (the closest of"),
        ("[federation]\nprotocol='fedavg'\nstrategy={name='FedAdam', etta=1}", "federation.strategy.etta: unknown key for FedAdam; did you mean 'eta'?"),
        ("[federation]\nprotocol='fedavg'\nstrategy={name='FedAdam', eta='x'}", "federation.strategy.eta: expected a number from 1e-12 to 1e+06, got 'x'"),
        ("[federation]\nprotocol='fedavg'\nstrategy='DifferentialPrivacyServerSideFixedClipping'", "federation.strategy.noise_multiplier: missing; expected a number"),
        ("[local]\nepochs=2", "local.epochs: FedSGD sends the gradient of one batch"),
        ("[local]\nsteps=2", "local.steps: FedSGD sends the gradient of one batch"),
        ("[local]\ndevice='gpu'", "local.device: 'gpu' is not usable here (PyTorch knows no such device); use 'cpu'"),
        ("[local]\ndevice='meta'", "local.device: 'meta' is not usable here"),
        ("[threat]\npreset='surrogate-data'", "'surrogate-data' grants public images, but data source 'samples' has no test split"),
        ("[model]\nname='lenett'", "model.name: unknown model 'lenett'; did you mean 'lenet'?"),
        ("[model]\nchanels=3", "model.chanels: unknown key for model 'lenet'; did you mean 'channels'?"),
        ("[model]\nname='nosuchmodule:f'", "cannot import 'nosuchmodule'"),
        ("[model]\nname='users_own:f'", "'users_own' has no 'f'"),
        ("[model]\nname='users_own:raises'", "raised OSError: disk on fire"),
        ("[model]\nname='users_own:no_module'", "returned int, expected a torch.nn.Module"),
        ("[model]\nname='users_own:wrong_shape'", "gives shape (2, 7) for a batch of 2, expected logits of shape (2, 10)"),
        ("[model]\nname='broken:f'", "importing 'broken' failed (KeyError: 'x')"),
        ("[model]\nname='no_python:f'", "importing 'no_python' failed (SyntaxError"),
        ("[model]\nname=':f'", "importing '' failed"),
    ],
)  # fmt: skip
def test_scenarios_that_cannot_run_are_refused_in_one_line(refused, text, message):
    refused(text, message)


def test_a_defense_that_the_protocol_excludes(refused, monkeypatch):
    from fedleak.defenses.base import defenses

    monkeypatch.setattr(defenses.get("gaussian-noise"), "protocols", frozenset({"fedavg"}))
    refused("[[defenses]]\nname='gaussian-noise'\nstd=1", "defenses[0]: defense 'gaussian-noise' cannot be used with federation.protocol = 'fedsgd'; leave it out, or set the protocol to 'fedavg'")  # fmt: skip


def test_an_attack_that_cannot_read_the_protocol(refused, monkeypatch):
    from fedleak.attacks.base import attacks

    monkeypatch.setattr(attacks.get("dlg"), "kinds", frozenset({"weights"}))
    refused("[[attacks]]\nname='dlg'", "attack 'dlg' cannot read gradients, which FedSGD sends; leave it out, or set federation.protocol = 'fedavg'")  # fmt: skip


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_jpeg_is_named(refused, tmp_path, split):
    for place in ("train/cat", "train/dog", "val/cat", "val/dog"):
        (tmp_path / "data" / place).mkdir(parents=True)
        (tmp_path / "data" / place / "1.jpg").write_bytes(encoded("JPEG"))
    (tmp_path / "data" / split / "dog" / "1.jpg").write_bytes(encoded("JPEG")[:300])
    text = "[data]\nsource='imagefolder'\npath='data'\n[federation]\nclients=2"
    refused(text, f"data/{split}/dog/1.jpg: cannot be read as an image")


@pytest.mark.parametrize("split", ["train", "test"])
def test_damaged_bytes_in_parquet_are_named(refused, tmp_path, split):
    for name in ("train", "test"):
        images = [{"bytes": encoded("PNG")}, {"bytes": encoded("PNG")[:200] if name == split else encoded("PNG")}]
        pq.write_table(pa.table({"img": images, "label": [0, 1]}), tmp_path / f"{name}.parquet")
    refused("[data]\nsource='parquet'\npath='.'\n[federation]\nclients=2", f"{split}.parquet, row 1: cannot be read as an image")


def test_places_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "taken").mkdir()
    refused("", "taken: exists already; choose another --out", "--out", "taken")
    refused("", "cannot be made", "--out", "s.toml/below")
    refused("", "cannot be made", "--out", "x" * 300)
    assert list((tmp_path / "taken").iterdir()) == []


def test_folders_that_hold_no_run(command, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text("{")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "manifest.json").write_text("{}")
    for words, message in {
        ("run", "--resume", "empty"): "empty: no run folder",
        ("run", "--resume", "nowhere"): "nowhere: no run folder",
        ("run", "--resume", "foreign"): "foreign/manifest.json: damaged (scenario: missing)",
        ("attack", "empty", "--attack", "dlg"): "empty: no run folder",
        ("attack", "damaged", "--attack", "dlg"): "damaged/manifest.json: damaged (no JSON",
        ("attack", "foreign", "--attack", "dlg"): "foreign/manifest.json: damaged (scenario: missing)",
        ("report", "empty"): "empty: no run folder",
    }.items():
        code, error = command(*words)
        assert (code, error.count("\n")) == (2, 1), (words, error)
        assert message in error


def test_a_run_without_captures_cannot_be_attacked(command, tmp_path):
    (tmp_path / "run" / "captures").mkdir(parents=True)
    scenario = parse_scenario({"name": "x"})
    facts = {"scenario": scenario.model_dump(mode="json"), "digest": scenario.digest, "engine": "inprocess"}
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(facts))
    code, error = command("attack", "run", "--attack", "dlg")
    assert code == 2
    assert "no observations under captures/" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run"], "which scenario?"),
        (["run", "nowhere.toml"], "nowhere.toml: no such file"),
        (["run", "--resume", "x", "--out", "y"], "leave out --out and --set"),
        (["run", "s.toml", "--repair"], "give it by --resume DIR"),
        (["run", "s.toml", "--set", "rounds"], "expected key.path=value"),
        (["run", "s.toml", "--device", "gpu"], "--device: 'gpu' is not usable here"),
        (["run", "s.toml", "--bogus"], "No such option"),
        (["run", "s.toml", "--threads", "0"], "0 is not in the range x>=1"),
        (["attack", "x"], "Missing option '--attack'"),
        (["rnu"], "No such command 'rnu'"),
        (["explain", "dgl"], "unknown plugin 'dgl'; did you mean 'dlg'?"),
        (["check", "s.toml", "--set", "seed=x"], "seed: expected a whole number, got 'x'"),
    ],
)
def test_command_lines_that_make_no_sense(command, tmp_path, words, message):
    (tmp_path / "s.toml").write_text('name = "x"\n')
    code, error = command(*words)
    assert (code, error.count("\n")) == (2, 1), error
    assert message in error
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir() and path.name != "__pycache__") == []
