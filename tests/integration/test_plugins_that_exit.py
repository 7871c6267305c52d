"""A module that calls ``sys.exit()``, or raises what is no ``Exception``, ends nothing: one line and code 2, or a failed row."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedleak import registry
from fedleak.cli import app as cli
from fedleak.errors import ScenarioError, ends_contained, told

Command = Callable[..., tuple[int, str]]
MODULE = """
import sys
import traceback
from torch import nn
from fedleak.attacks.closed_form import ClosedForm
from fedleak.data.samples import Samples
from fedleak.defenses.gaussian_noise import GaussianNoise

class Own(BaseException):
    pass

def leave():
    {how}

def net(num_classes):
    leave()

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, num_classes)
    def forward(self, images):
        leave()

def late_net(num_classes):
    return Late(num_classes)

class Late(Net):
    def forward(self, images):
        if any(frame.filename.endswith("client/training.py") for frame in traceback.extract_stack()):
            leave()
        return self.layer(images.flatten(1))

class Built(ClosedForm):
    name = "built"
    def __init__(self, **parameters):
        leave()

class Needing(ClosedForm):
    name = "needing"
    def needs(self, kind):
        leave()

class Attack(ClosedForm):
    name = "leaving"
    def reconstruct(self, *given, **more):
        leave()

class Verifying(GaussianNoise):
    name = "verifying"
    def verify(self, *given):
        leave()

class Defense(GaussianNoise):
    name = "leaving"
    def on_update(self, update, situation):
        leave()

class Source(Samples):
    name = "leaving"
    def __init__(self, data):
        leave()
"""
HOWS = {"exit": "sys.exit(0)", "none": "sys.exit()", "own": "raise Own('no more')", "text": "raise SystemExit('a\\nb')"}
AT_ONCE: dict[str, dict[str, Any]] = {
    "import": {"model.name": "leaving_at_import:net"},
    "model": {"model.name": "leaving:net"},
    "forward": {"model.name": "leaving:Net"},
    "attack": {"attacks": [{"name": "leaving:Built"}]},
    "needs": {"attacks": [{"name": "leaving:Needing"}]},
    "defense": {"defenses": [{"name": "leaving:Verifying", "std": 1e-4}]},
    "source": {"data.source": "leaving:Source"},
}
BASE = {
    "name": "x",
    "data.image_size": 16,
    "model.name": "mlp",
    "model.hidden": [4],
    "federation.clients": 2,
    "federation.rounds": 1,
}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Command]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "BESIDE", [])

    def call(how: str, tables: dict[str, Any], *words: str) -> tuple[int, str]:
        (tmp_path / "leaving.py").write_text(MODULE.format(how=HOWS[how]))
        (tmp_path / "leaving_at_import.py").write_text("import leaving\nleaving.leave()\n")
        given = {**BASE, **tables}
        if "model.name" in tables:
            del given["model.hidden"]
        lines = [f"{key} = {_toml(value)}" for key, value in given.items()]
        (tmp_path / "s.toml").write_text("\n".join(lines) + "\n")
        monkeypatch.setattr(sys, "argv", ["fedleak", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        code = stopped.value.code
        assert code is None or isinstance(code, int)
        return code or 0, capsys.readouterr().err

    yield call
    for name in ("leaving", "leaving_at_import"):
        sys.modules.pop(name, None)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + "}"
    return "[" + ", ".join(map(_toml, value)) + "]" if isinstance(value, list) else json.dumps(value)


@pytest.mark.parametrize("place", AT_ONCE)
@pytest.mark.parametrize("how", HOWS)
def test_check_and_run_refuse_it_with_one_line(command: Command, tmp_path: Path, how: str, place: str) -> None:
    for words in (("check", "s.toml"), ("run", "s.toml", "--out", "run")):
        code, said = command(how, AT_ONCE[place], *words)
        assert (code, said.count("\n")) == (2, 1), said
        assert said.startswith("error: ")
        assert ("Own: no more" if how == "own" else "it called sys.exit(") in said
        assert not (tmp_path / "run").exists()


def test_a_list_of_plugins_and_an_explanation_refuse_it_too(command: Command) -> None:
    code, said = command("exit", {}, "explain", "leaving_at_import:net")
    assert code == 2
    assert "Traceback" not in said


@pytest.mark.parametrize("isolation", ["none", "process"])
@pytest.mark.parametrize("how", ["exit", "own"])
def test_an_attack_that_does_is_a_failed_row(command: Command, tmp_path: Path, how: str, isolation: str) -> None:
    tables = {"attacks": [{"name": "leaving:Attack"}, {"name": "closed-form"}], "server.isolation": isolation}
    code, said = command(how, tables, "run", "s.toml", "--out", "run", "-q")
    assert code == 0, said
    rows = [json.loads(line) for line in (tmp_path / "run" / "reconstructions.jsonl").read_text().splitlines()]
    assert [(row["attack"], bool(row["error"])) for row in rows] == [("Attack", True)] * 2 + [("closed-form", False)] * 2
    assert ("SystemExit" if how == "exit" else "Own: no more") in rows[0]["error"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["exit", "own"])
def test_a_spread_attack_that_does_is_a_failed_row(command: Command, tmp_path: Path, how: str) -> None:
    assert command(how, {"attacks": [{"name": "closed-form"}]}, "run", "s.toml", "--out", "run", "-q")[0] == 0
    code, said = command(how, {}, "attack", "run", "--attack", "leaving:Attack", "--jobs", "2", "-q")
    assert code == 0, said
    rows = [json.loads(line) for line in (tmp_path / "run" / "reconstructions.jsonl").read_text().splitlines()]
    assert [bool(row["error"]) for row in rows if row["attack"] == "Attack"] == [True, True]


@pytest.mark.parametrize("engine", ["inprocess", pytest.param("ray", marks=pytest.mark.slow)])
@pytest.mark.parametrize("how", ["exit", "own"])
@pytest.mark.parametrize("place", ["defense", "model"])
def test_a_client_that_does_costs_its_reply(command: Command, tmp_path: Path, how: str, engine: str, place: str) -> None:
    tables: dict[str, Any] = {"defenses": [{"name": "leaving:Defense", "std": 1e-4}], "server.curious": False}
    if place == "model":
        tables = {"model.name": "leaving:late_net", "server.curious": False}
    code, said = command(how, tables | {"federation.engine": engine}, "run", "s.toml", "--out", "run", "-q")
    assert code == 1, said
    assert "2 client reply(s) failed" in said
    lines = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    assert [failure["client"] for failure in json.loads(lines[-1])["failures"]] == [0, 1]


def test_ctrl_c_and_exceptions_pass_as_they_are() -> None:
    for kind in (KeyboardInterrupt, ValueError, ScenarioError, GeneratorExit):
        with pytest.raises(kind), ends_contained("x"):
            raise kind("y")
    with pytest.raises(ScenarioError, match=r"^x: SystemExit: it called sys\.exit\(3\)$"), ends_contained("x"):
        sys.exit(3)
    assert told(ValueError("a\nb")) == "ValueError: a b"
