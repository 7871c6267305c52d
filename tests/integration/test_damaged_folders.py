"""Run folders as strangers hand them over: damaged by seeded mutations, each is read, or refused with one line and code 2."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedleak.cli import app as cli

TABLES: dict[str, Any] = {
    "name": "small",
    "data": {"source": "samples", "image_size": 16},
    "model": {"name": "mlp", "hidden": [4]},
    "federation": {"clients": 6, "rounds": 2, "protocol": "fedavg", "strategy": {"name": "FedAdam", "eta": 0.01}},
    "local": {"batch_size": 2, "steps": 1},
    "server": {"isolation": "none"},
    "attacks": [{"name": "closed-form"}],
    "evaluation": {"membership": {}, "canaries": {"count": 4, "controls": 20}},
    "defenses": [{"name": "gaussian-noise", "std": 1e-5}],
}
COMMANDS = {
    "report": ("report", "run"),
    "attack": ("attack", "run", "--attack", "analytic", "-q"),
    "resume": ("run", "--resume", "run", "-q"),
    "leaderboard": ("leaderboard", "run"),
}
Command = Callable[..., tuple[int, str]]
SEEDS_QUICK, SEEDS_ALL = range(26), range(150)
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    1.5,
    10**400,
    2**63,
    "",
    "x",
    "\ud800",
    "a" * 10_000,
    [],
    [[]],
    {},
    {"a": None},
    "../../x",
]
RAW = [
    b"",
    b"\xff\xfe",
    b"{",
    b"null",
    b"[]",
    b"3",
    b"NaN",
    b"[" * 100_000,
    b'{"a": 1e999}',
    b"\0" * 50,
    b"{}{}",
    b"\n\n",
]


@pytest.fixture(scope="session")
def runs(ended: Callable[[dict[str, Any]], SimpleNamespace]) -> SimpleNamespace:
    return ended(TABLES)


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str]]:
    """Run the command line in this process; return its exit code and what it wrote to stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fedleak", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0), capsys.readouterr().err

    return call


def checked(code: int, told: str, what: str) -> None:
    lines = [line for line in told.splitlines() if line.strip()]
    assert "Traceback" not in told, (what, told)
    assert code in (0, 2), (what, code, told)
    if code == 2:
        assert len(lines) == 1, (what, told)
        assert lines[0].startswith("error: "), (what, told)


class Mutation:
    """One seeded change of a run folder; says in words what it did."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.draw = folder, random.Random(seed)
        ways = [
            self.line,
            self.json,
            self.json,
            self.raw,
            self.truncated,
            self.flipped,
            self.gone,
            self.kind,
            self.link,
            self.stray,
        ]
        self.what = f"seed {seed}: {ways[seed % len(ways)]()}"

    def _file(self, *suffixes: str) -> Path:
        found = sorted(path for path in self.folder.rglob("*") if path.is_file() and path.name.endswith(suffixes or ("",)))
        return self.draw.choice([path for path in found if path.name not in ("report.html", "run.lock")])

    def _odd_in(self, table: Any) -> str:
        """Put an odd value into a table, or drop a key, at any depth."""
        places = list(_places(table))
        owner, key = self.draw.choice(places)
        if isinstance(owner, dict) and self.draw.random() < 0.3:
            del owner[key]
            return f"without {key!r}"
        owner[key] = value = self.draw.choice(ODD)
        return f"{key!r} = {value!r:.30}"

    def line(self) -> str:
        path = self._file(".jsonl")
        lines = path.read_text().splitlines()
        number = self.draw.randrange(len(lines))
        table = json.loads(lines[number])
        did = self._odd_in(table)
        lines[number] = json.dumps(table)
        path.write_text("\n".join(lines) + "\n")
        return f"{path.name}: line {number + 1} {did}"

    def json(self) -> str:
        path = self._file(".json", ".safetensors")
        if path.suffix == ".json":
            table = json.loads(path.read_text())
            did = self._odd_in(table)
            path.write_text(json.dumps(table))
            return f"{path.name}: {did}"
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        facts = header.get("__metadata__", {})
        inner = self.draw.choice([key for key in facts if facts[key].startswith("{")])
        table = json.loads(facts[inner])
        did = self._odd_in(table if table and self.draw.random() < 0.8 else header)
        facts[inner] = json.dumps(table)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
        return f"{path.name}: {did}"

    def raw(self) -> str:
        path, content = self._file(), self.draw.choice(RAW)
        if path.suffix == ".jsonl" and self.draw.random() < 0.7:
            lines = path.read_bytes().splitlines(keepends=True)
            lines.insert(self.draw.randrange(len(lines) + 1), content + b"\n")
            content = b"".join(lines)
        path.write_bytes(content)
        return f"{path.name}: {content!r:.30}"

    def truncated(self) -> str:
        path = self._file()
        content = path.read_bytes()
        path.write_bytes(content[: self.draw.randrange(len(content))])
        return f"{path.name}: cut short"

    def flipped(self) -> str:
        path = self._file()
        content = bytearray(path.read_bytes())
        for _ in range(8):
            content[self.draw.randrange(min(len(content), 3000))] = self.draw.randrange(256)
        path.write_bytes(content)
        return f"{path.name}: other bytes"

    def gone(self) -> str:
        path = self.draw.choice(sorted(self.folder.rglob("*")))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return f"{path.name}: gone"

    def kind(self) -> str:
        path = self.draw.choice(sorted(path for path in self.folder.rglob("*") if path.name != "run.lock"))
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        how = self.draw.choice(["folder", "file", "pipe"])
        {"folder": path.mkdir, "file": lambda: path.write_bytes(b"x"), "pipe": lambda: os.mkfifo(path)}[how]()
        return f"{path.name}: a {how}"

    def link(self) -> str:
        names = ["run.lock", "report.html", "summary.json", "rounds.jsonl", "again.jsonl", "again", "captures", "images"]
        path = self.folder / self.draw.choice([*names, "manifest.json", "reconstructions.jsonl", "checkpoint.safetensors"])
        _away(path, self.folder.parent / "elsewhere" / path.name)
        return f"{path.name}: a link"

    def stray(self) -> str:
        name = self.draw.choice(
            [
                "captures/r1-cX.safetensors",
                "captures/notes",
                "images/r001-c.png",
                "x.tmp/deep",
                "again/x/y",
                "captures/r9-c9",
            ]
        )
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).mkdir() if self.draw.random() < 0.5 else (self.folder / name).write_bytes(b"stray")
        return f"{name}: there"


def _away(path: Path, elsewhere: Path) -> None:
    """Put a link in a file's place, to where it is then."""
    elsewhere.parent.mkdir(exist_ok=True)
    if path.exists():
        path.rename(elsewhere)
    elif path.suffix:
        elsewhere.write_text("")
    else:
        elsewhere.mkdir()
        (elsewhere / "r002-c000.png").write_text("keep")
    path.symlink_to(elsewhere)


def _places(table: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(table.items()) if isinstance(table, dict) else list(enumerate(table)):
        yield table, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _mutated(runs: SimpleNamespace, tmp_path: Path, name: str, seed: int) -> Mutation:
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
    shutil.copytree(runs.half if name == "resume" else runs.whole, folder)
    return Mutation(folder, seed)


def _tried(runs: SimpleNamespace, tmp_path: Path, command: Any, name: str, seed: int) -> int:
    made = _mutated(runs, tmp_path, name, seed)
    before = _everything(tmp_path / "elsewhere")
    code, told = command(*COMMANDS[name])
    checked(code, told, f"{name}, {made.what}")
    assert _everything(tmp_path / "elsewhere") == before, made.what
    return code


def test_a_mutated_folder_is_read_or_refused_with_one_line(runs: SimpleNamespace, tmp_path: Path, command: Any) -> None:
    codes = [_tried(runs, tmp_path, command, list(COMMANDS)[seed % 4], seed) for seed in SEEDS_QUICK]
    assert {0, 2} == set(codes)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_150_mutated_folders_are_read_or_refused_with_one_line(
    runs: SimpleNamespace, tmp_path: Path, command: Any, name: str
) -> None:
    codes = [_tried(runs, tmp_path, command, name, seed) for seed in SEEDS_ALL]
    assert {0, 2} == set(codes)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_process_of_its_own_says_the_same(runs: SimpleNamespace, tmp_path: Path, name: str) -> None:
    for seed in (1, 4, 8):
        made = _mutated(runs, tmp_path, name, seed)
        done = subprocess.run(
            [sys.executable, "-m", "fedleak", *COMMANDS[name]], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        checked(done.returncode, done.stderr, f"{name}, {made.what}")


@pytest.mark.parametrize("name", ["attack", "resume"])
def test_a_folder_of_exhibits_that_is_gone_is_made_again(runs: SimpleNamespace, tmp_path: Path, command: Any, name: str) -> None:
    shutil.copytree(runs.half if name == "resume" else runs.whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "images")
    assert command(*COMMANDS[name])[0] == 0
    assert list((tmp_path / "run" / "images").iterdir())
