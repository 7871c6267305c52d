"""What a run folder from a stranger cannot do: run code, have anything written elsewhere, or end a command without a word."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedleak import registry
from fedleak.apps import clientapp, serverapp
from fedleak.cli import app as cli
from fedleak.errors import FedleakError, ScenarioError
from fedleak.events import Event
from fedleak.experiment import run as api
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import parse_scenario

Command = Callable[..., tuple[int, str]]
TABLES: dict[str, Any] = {
    "name": "small",
    "data": {"source": "samples", "image_size": 16},
    "model": {"name": "mlp", "hidden": [4]},
    "federation": {"clients": 2, "rounds": 2},
    "server": {"isolation": "none"},
    "attacks": [{"name": "closed-form"}],
}
# Every kind of plugin by name of code; the module leaves a mark when it is imported.
MODULE = """
from pathlib import Path
from fedleak.attacks.closed_form import ClosedForm
from fedleak.attacks.labels.base import LabelRule
from fedleak.data.samples import Samples
from fedleak.defenses.gaussian_noise import GaussianNoise
from torch import nn

Path("{mark}").write_text("run")

class Attack(ClosedForm):
    name = "strange"

def net(input_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4), nn.Sigmoid(), nn.Linear(4, num_classes))
"""
NAMED = {
    "model": {"model": {"name": "stranger:net"}},
    "attacks": {"attacks": [{"name": "stranger:Attack"}]},
    "labels": {"attacks": [{"name": "closed-form", "labels": "stranger:Rule"}]},
    "defenses": {"defenses": [{"name": "stranger:Defense"}]},
    "source": {"data": {"source": "stranger:Source"}},
}
ALL = {
    "check": ("check", "run"),
    "check of the manifest": ("check", "run/manifest.json"),
    "report": ("report", "run"),
    "attack": ("attack", "run", "--attack", "analytic", "-q"),
    "attack in processes": ("attack", "run", "--attack", "analytic", "-q", "--jobs", "1"),
    "resume": ("run", "--resume", "run", "-q"),
    "leaderboard": ("leaderboard", "run"),
}


@pytest.fixture(scope="session")
def runs(ended: Callable[[dict[str, Any]], SimpleNamespace]) -> SimpleNamespace:
    return ended(TABLES)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Run the command line in this process, in the folder that holds ``run``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "BESIDE", [])

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fedleak", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0), capsys.readouterr().err

    yield call
    sys.modules.pop("stranger", None)


@pytest.fixture
def received(runs: SimpleNamespace, tmp_path: Path) -> Callable[..., Path]:
    """Make a folder whose manifest names code, which lies beside it."""

    def make(named: dict[str, Any], *, half: bool) -> Path:
        shutil.copytree(runs.half if half else runs.whole, tmp_path / "run")
        table = json.loads((tmp_path / "run" / "manifest.json").read_text())
        for key, value in named.items():
            table["scenario"][key] = {**table["scenario"][key], **value} if key == "data" else value
        scenario = parse_scenario(table["scenario"])
        table |= {"scenario": json.loads(scenario.to_json()), "digest": scenario.digest}
        (tmp_path / "run" / "manifest.json").write_text(json.dumps(table))
        (tmp_path / "stranger.py").write_text(MODULE.format(mark=tmp_path / "mark"))
        return tmp_path / "mark"

    return make


@pytest.mark.parametrize("kind", NAMED)
@pytest.mark.parametrize("name", ALL)
def test_code_out_of_a_folder_is_not_run(received: Callable[..., Path], command: Command, name: str, kind: str) -> None:
    mark = received(NAMED[kind], half=name == "resume")
    code, told = command(*ALL[name])
    assert not mark.exists(), told
    assert "Traceback" not in told
    reads_no_code = name == "report" or (name.startswith("attack") and kind in ("attacks", "labels"))
    reads_no_code |= name == "leaderboard" and kind not in ("attacks", "labels")
    if reads_no_code:
        assert code == 0, told
        return
    assert (code, told.count("\n")) == (2, 1), told
    if not name.startswith("check"):
        assert "names code that would be run here: " in told
        assert "'stranger:" in told
        assert "--allow-code" in told


def test_it_is_run_where_it_is_allowed_or_the_scenario_at_hand_names_the_same(
    received: Callable[..., Path], command: Command, tmp_path: Path
) -> None:
    named = NAMED["attacks"] | NAMED["model"]
    mark = received(named, half=True)
    (tmp_path / "run" / "checkpoint.safetensors").unlink()  # it is of another network
    asked = parse_scenario({**TABLES, **named})
    (tmp_path / "mine.toml").write_text(
        'name = "small"\ndata = {source = "samples", image_size = 16}\nmodel.name = "stranger:net"\n'
        'federation = {clients = 2, rounds = 2}\nserver.isolation = "none"\nattacks = [{name = "stranger:Attack"}]\n'
    )
    shutil.rmtree(tmp_path / "run")

    def stop(event: Event) -> None:
        if event.kind == "round" and event.facts["round"] == 2:
            raise KeyboardInterrupt

    registry.BESIDE.append(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        api.run(asked, out=tmp_path / "run", device="cpu", listener=stop)
    shutil.copytree(tmp_path / "run", tmp_path / "again")

    def forget() -> None:
        registry.BESIDE.clear()
        sys.modules.pop("stranger", None)
        mark.unlink(missing_ok=True)

    forget()
    assert command("run", "--resume", "run", "-q")[0] == 2
    assert not mark.exists()
    code, told = command("run", "mine.toml", "--resume", "run", "-q")
    assert (code, mark.exists()) == (0, True), told
    forget()
    code, told = command("run", "--resume", "again", "-q", "--allow-code")
    assert (code, mark.exists()) == (0, True), told
    for words in (("attack", "run", "--attack", "analytic", "-q"), ("leaderboard", "run")):
        forget()
        assert command(*words)[0] == 2
        assert not mark.exists()
        code, told = command(*words, "--allow-code")
        assert (code, mark.exists()) == (0, True), told
    assert command("run", "mine.toml", "--set", "seed=9", "--resume", "run")[1].startswith("error: run: is of another experiment")


def test_own_scenarios_on_the_command_line_need_no_flag(command: Command, tmp_path: Path) -> None:
    (tmp_path / "stranger.py").write_text(MODULE.format(mark=tmp_path / "mark"))
    (tmp_path / "mine.toml").write_text('name = "x"\ndata.image_size = 16\nmodel.name = "stranger:net"\n')
    assert command("check", "mine.toml") == (0, "")
    assert (tmp_path / "mark").exists()


def test_a_flower_run_with_code_in_it_is_refused_on_both_sides() -> None:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    scenario = parse_scenario({**TABLES, "model": {"name": "no_such_module:net"}})
    config: dict[str, Any] = {"scenario": scenario.to_json()}
    context = Context(1, 1, {"partition-id": 0}, RecordDict(), config)
    with pytest.raises(ScenarioError, match="names code that would be run here: model.name = 'no_such_module:net'.*allow-code"):
        serverapp._asked(config, "ray")
    message = Message(RecordDict({"config": ConfigRecord({"server-round": 1})}), 1, "train")
    with pytest.raises(ScenarioError, match="allow-code=true"):
        clientapp.app(message, context)
    config["allow-code"] = True
    assert serverapp._asked(config, "ray")[0].model.name == "no_such_module:net"
    with pytest.raises(FedleakError) as went_on:
        clientapp.app(message, context)
    assert "names code" not in str(went_on.value)


@pytest.mark.slow
def test_a_library_of_that_name_in_the_folder_that_one_works_in_is_not_imported(runs: SimpleNamespace, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs.whole, folder)
    for library in ("torch", "jinja2", "matplotlib", "PIL", "opacus", "flwr", "pandas", "numba"):
        (folder / f"{library}.py").write_text(f"open({str(tmp_path / library)!r}, 'w')\nraise ImportError")
    path = os.pathsep.join(entry for entry in sys.path if entry)
    for words in (("report", "."), ("attack", ".", "--attack", "analytic", "-q"), ("leaderboard", "."), ("list",)):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "fedleak", *words],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_what_a_file_or_folder_links_to_stays_as_it_is(runs: SimpleNamespace, tmp_path: Path, command: Command) -> None:
    names = [
        "run.lock",
        "report.html",
        "summary.json",
        "rounds.jsonl",
        "again.jsonl",
        "captures",
        "images",
        "again",
        "client.secret",
    ]
    for name in names:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(runs.half, tmp_path / "run")
        place, elsewhere = tmp_path / "run" / name, tmp_path / f"elsewhere-{name}"
        if place.exists():
            place.rename(elsewhere)
        elif place.suffix:
            elsewhere.write_text("keep")
        else:
            elsewhere.mkdir()
            (elsewhere / "a0-r001.safetensors").write_text("keep")
            (elsewhere / "r009-c000.png").write_text("keep")
        place.symlink_to(elsewhere)
        before = {path: path.read_bytes() for path in (elsewhere, *elsewhere.rglob("*")) if path.is_file()}
        for words in (*(ALL[one] for one in ("report", "attack", "resume")), ("report", "run", "--repair")):
            code, told = command(*words)
            assert (code, told.count("\n")) == (2, 1), (name, words, told)
            assert f"run/{name}: is a link" in told
        assert {path: path.read_bytes() for path in (elsewhere, *elsewhere.rglob("*")) if path.is_file()} == before, name


def test_a_run_that_ended_after_its_last_round_gets_its_summary_and_report(
    runs: SimpleNamespace, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(runs.whole, tmp_path / "run")
    wanted = json.loads((tmp_path / "run" / "summary.json").read_text())
    for gone in (("summary.json", "report.html"), ("report.html",), ("summary.json",)):
        for name in gone:
            (tmp_path / "run" / name).unlink()
        code, told = command("run", "--resume", "run", "-q")
        assert code == 0, told
        assert json.loads((tmp_path / "run" / "summary.json").read_text()) == wanted
        assert "<html" in (tmp_path / "run" / "report.html").read_text()
    assert command("run", "--resume", "run") == (2, "error: run: all 2 rounds are done already; nothing to resume\n")


def test_a_damaged_line_stops_a_resume_until_it_is_set_aside(runs: SimpleNamespace, tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs.half, folder)
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    (folder / "rounds.jsonl").write_text("\n".join([lines[0], lines[1][:40], *lines[2:]]) + "\n")
    rows = (folder / "reconstructions.jsonl").read_text()
    code, told = command("run", "--resume", "run", "-q")
    assert (code, told.count("\n")) == (2, 1)
    assert "run/rounds.jsonl, line 2 of 2: damaged (no JSON" in told
    code, told = command("run", "--resume", "run", "-q", "--repair")
    assert code == 0, told
    assert (folder / "rounds.jsonl.damaged").read_text() == lines[1][:40] + "\n"
    assert [row["round"] for row in RunFolder.open(folder).rows("rounds.jsonl")] == [0, 2]
    assert (folder / "reconstructions.jsonl").read_text().startswith(rows)
    assert (
        "1 line of rounds.jsonl missing: damaged, and set aside in rounds.jsonl.damaged" in (folder / "report.html").read_text()
    )


def test_lines_that_are_not_there_are_said_before_a_resume(runs: SimpleNamespace, tmp_path: Path, command: Command) -> None:
    shutil.copytree(runs.half, tmp_path / "run")
    (tmp_path / "run" / "rounds.jsonl").write_text("")
    code, told = command("run", "--resume", "run", "-q")
    assert code == 2
    assert "the lines of rounds 1 are missing, though checkpoint.safetensors is of round 1; add --repair" in told
    assert command("run", "--resume", "run", "-q", "--repair")[0] == 0
    assert "1 line of rounds.jsonl missing." in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("name", ["report", "attack", "resume"])
def test_a_folder_that_may_only_be_read_is_one_line(
    runs: SimpleNamespace, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(runs.half, tmp_path / "run")
    inodes = {(tmp_path / "run" / place).stat().st_ino for place in ("", "captures", "images")}
    before, real = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}, os.open

    def open_read_only(path: Any, flags: int, *rest: Any, dir_fd: int | None = None, **more: Any) -> int:
        # As the system answers where the folder lies on a disk that is mounted so; whoever runs the tests may be root.
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and dir_fd is not None and os.fstat(dir_fd).st_ino in inodes:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return real(path, flags, *rest, dir_fd=dir_fd, **more)

    monkeypatch.setattr(os, "open", open_read_only)
    code, told = command(*ALL[name])
    assert (code, told.count("\n")) == (2, 1), told
    assert "Read-only file system" in told
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
