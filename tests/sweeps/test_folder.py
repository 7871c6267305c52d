"""A sweep's folder that is damaged, or linked elsewhere: one line, exit code 2, and nothing is written through a link."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedleak.cli import app as cli
from fedleak.sweeps import sweep as module
from fedleak.sweeps.cell import run_cell

Command = Callable[..., tuple[int, str]]
ODD: list[Any] = [None, True, -1, 3, 1.5, 10**30, "", "x", [], {}, [[]], {"a": 1}]
SWEEP = """
name = "tiny"
[scenario]
data = {source = "samples", image_size = 16}
model = {name = "mlp", hidden = [8]}
federation = {clients = 2, rounds = 1}
attacks = [{name = "closed-form"}]
[[defenses]]
name = "gaussian-noise"
strengths.std = [0.1]
"""


class Here:
    """Runs cells in this process."""

    def __init__(self, workers: int, log: Path, function: str) -> None:
        pass

    def run(self, jobs: Any, watcher: Any) -> None:
        for job in jobs:
            run_cell(job)
            watcher.done(job.name, None)


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("swept")
    (place / "tiny.toml").write_text(SWEEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Pool", Here)
        module.sweep(place / "tiny.toml", out=place / "out", device="cpu")
    return place


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, swept: Path) -> Command:
    """Run the command line on a copy of the sweep; return its exit code and stderr."""
    shutil.copytree(swept, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(module, "Pool", Here)

    def call(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fedleak", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0), capsys.readouterr().err

    return call


def _places(table: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(table.items()) if isinstance(table, dict) else list(enumerate(table)):
        yield table, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _mutate(path: Path, seed: int) -> str:
    draw, content = random.Random(seed), path.read_bytes()
    if seed % 3 == 0:
        path.write_bytes(draw.choice([b"", b"{", b"[]\n", b"\xff\n", b"[" * 50_000, content[: len(content) // 2]]))
        return "raw"
    lines = content.splitlines() if path.suffix == ".jsonl" else [content]
    table = json.loads(lines[0])
    owner, key = draw.choice(list(_places(table)))
    owner[key] = value = draw.choice(ODD)
    if seed % 3 == 1 and isinstance(owner, dict):
        del owner[key]
    path.write_bytes(b"\n".join([json.dumps(table).encode(), *lines[1:]]) + b"\n")
    return f"{key!r} = {value!r:.30}"


@pytest.mark.parametrize("name", ["sweep.json", "sweep.jsonl", "done"])
@pytest.mark.parametrize("words", [("report", "out"), ("leaderboard", "out"), ("sweep", "tiny.toml", "--out", "out", "-q")])
def test_a_mutated_sweep_is_read_or_refused_with_one_line(
    command: Command, swept: Path, name: str, words: tuple[str, ...]
) -> None:
    for seed in range(6):
        shutil.rmtree("out")
        shutil.copytree(swept / "out", "out")
        path = sorted(Path("out/done").iterdir())[0] if name == "done" else Path("out", name)
        did = _mutate(path, seed)
        code, said = command(*words)
        assert "Traceback" not in said
        assert code in (0, 2), (seed, did, said)
        assert code == 0 or (said.count("\n"), said[:7]) == (1, "error: "), (seed, did, said)


@pytest.mark.parametrize(
    "name", ["cells", "done", "locks", "sweep.lock", "sweep.jsonl", "sweep.csv", "sweep.html", "workers.log"]
)
def test_nothing_is_written_through_a_link(command: Command, name: str) -> None:
    place, elsewhere = Path("out", name), Path("elsewhere")
    if place.exists():
        place.rename(elsewhere)
    else:
        elsewhere.write_text("keep")
    place.symlink_to(elsewhere.absolute())
    before = {path: path.read_bytes() for path in (elsewhere, *elsewhere.rglob("*")) if path.is_file()}
    for words in (("report", "out"), ("sweep", "tiny.toml", "--out", "out", "-q", "--set", "seed=2")):
        code, said = command(*words)
        assert code == 2
        assert f"out/{name}: is a link" in said
    assert {path: path.read_bytes() for path in (elsewhere, *elsewhere.rglob("*")) if path.is_file()} == before


def test_a_cell_that_is_a_link_is_not_run_into(command: Command) -> None:
    cell = sorted(Path("out/cells").iterdir())[0]
    shutil.rmtree(cell)
    Path("elsewhere").mkdir()
    cell.symlink_to(Path("elsewhere").absolute())
    code, said = command("sweep", "tiny.toml", "--out", "out", "-q")
    assert code != 0
    assert "Traceback" not in said
    assert list(Path("elsewhere").iterdir()) == []


def test_a_damaged_cell_that_is_done_is_made_again_out_of_its_run(command: Command, swept: Path) -> None:
    done = sorted(Path("out/done").iterdir())[0]
    before = done.read_bytes()
    done.write_bytes(before[:50])
    assert command("sweep", "tiny.toml", "--out", "out", "-q")[0] == 0
    assert json.loads(done.read_bytes()) == json.loads(before)


def test_a_leaderboard_replaces_a_link_in_the_place_of_its_page(command: Command) -> None:
    Path("elsewhere").write_text("keep")
    Path("board.html").symlink_to("elsewhere")
    assert command("leaderboard", "out", "--out", "board.html")[0] == 0
    assert Path("elsewhere").read_text() == "keep"
    assert not Path("board.html").is_symlink()
