"""Damaged lines are set aside in a file of their own, and the report knows that they are missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedleak.errors import FedleakError, ScenarioError
from fedleak.runs.folder import RunFolder
from fedleak.runs.records import read_records
from fedleak.runs.repair import repair

MakeRun = Callable[..., Path]


def damage(folder: Path, name: str, number: int, line: str) -> None:
    lines = (folder / name).read_text().splitlines()
    lines.insert(number, line)
    (folder / name).write_text("\n".join(lines) + "\n")


def test_they_are_kept_as_they_were_and_the_whole_ones_stay(make_run: MakeRun) -> None:
    folder = make_run()
    before = {name: (folder / name).read_bytes() for name in ("rounds.jsonl", "reconstructions.jsonl")}
    damage(folder, "rounds.jsonl", 1, '{"round": 1')
    damage(folder, "rounds.jsonl", 3, "nonsense")
    damage(folder, "reconstructions.jsonl", 0, "[]")
    done = repair(RunFolder.open(folder))
    assert [str(one) for one in done] == [
        "2 damaged lines of rounds.jsonl set aside in rounds.jsonl.damaged",
        "1 damaged line of reconstructions.jsonl set aside in reconstructions.jsonl.damaged",
    ]
    assert (folder / "rounds.jsonl.damaged").read_text() == '{"round": 1\nnonsense\n'
    assert {name: (folder / name).read_bytes() for name in before} == before
    records = read_records(folder)
    assert records.repairs[0] == "2 lines of rounds.jsonl missing: damaged, and set aside in rounds.jsonl.damaged."
    assert not records.finished
    assert repair(RunFolder.open(folder)) == []


def test_a_second_repair_adds_to_the_first(make_run: MakeRun) -> None:
    folder = make_run()
    for line in ("one", "two"):
        damage(folder, "rounds.jsonl", 1, line)
        repair(RunFolder.open(folder))
    assert (folder / "rounds.jsonl.damaged").read_text() == "one\ntwo\n"


@pytest.mark.parametrize("stage", ["append_bytes", "write_json", "replace_file"])
def test_a_kill_in_between_loses_no_line(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    folder = make_run()
    whole = (folder / "rounds.jsonl").read_bytes()
    damage(folder, "rounds.jsonl", 1, "nonsense")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, stage, killed)
        with pytest.raises(KeyboardInterrupt):
            repair(RunFolder.open(folder))
    repair(RunFolder.open(folder))
    assert "nonsense\n" in (folder / "rounds.jsonl.damaged").read_text()
    assert (folder / "rounds.jsonl").read_bytes() == whole


def test_what_is_no_lines_is_not_repaired(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run()
    damage(folder, "rounds.jsonl", 1, "nonsense")
    (folder / "rounds.jsonl.damaged").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FedleakError, match="a link"):
        repair(RunFolder.open(folder))
    assert not (tmp_path / "elsewhere").exists()
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ScenarioError, match=r"manifest\.json: damaged"):
        repair(RunFolder.open(folder))
