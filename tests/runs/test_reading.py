"""A file of a run folder is read whole, or refused with one line that says where it is damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fedleak.errors import ScenarioError
from fedleak.runs.forms import LINES, Damaged, ManifestForm, RoundForm, fitted
from fedleak.runs.reading import check_kinds, content, read_lines, read_rows, read_table, table_in

ROUND: dict[str, Any] = {"round": 1, "accuracy": 0.5, "loss": 2.0, "clients": [0, 1], "failures": []}


def written(path: Path, *lines: bytes, end: bytes = b"\n") -> Path:
    path.write_bytes(b"\n".join(lines) + end)
    return path


def whole(server_round: int) -> bytes:
    return json.dumps(ROUND | {"round": server_round}).encode()


DAMAGE = {
    "no JSON": b'{"round": 2, ',
    "no UTF-8": b'{"round": "\xff"}',
    "nested too deep": b"[" * 200_000,
    "nested deeper": b'{"round": 2, "x": ' + b"[" * 40 + b"]" * 40 + b"}",
    "expected a table": b"[1, 2]",
    "NaN is no number": whole(2).replace(b"2.0", b"NaN"),
    "loss: input should be less": whole(2).replace(b"2.0", b"1e305"),
    "not finite": whole(2).replace(b'"failures"', b'"x": 1e999, "failures"'),
    "more than 64 bits": whole(2).replace(b'"failures"', b'"x": ' + b"9" * 30 + b', "failures"'),
    "Exceeds the limit": whole(2).replace(b'"failures"', b'"x": ' + b"9" * 9000 + b', "failures"'),
    "clients.0: input should be a valid integer": whole(2).replace(b"[0, 1]", b'["0", 1]'),
    "round: input should be a valid integer": whole(2).replace(b'"round": 2', b'"round": true'),
    "accuracy: missing": whole(2).replace(b'"accuracy": 0.5, ', b""),
    "failures: missing": whole(2).replace(b', "failures": []', b""),
}


@pytest.mark.parametrize("why", DAMAGE)
def test_a_damaged_line_is_named_and_takes_no_whole_line_along(tmp_path: Path, why: str) -> None:
    path = written(tmp_path / "rounds.jsonl", whole(1), DAMAGE[why], whole(3))
    found = read_lines(path)
    assert [row["round"] for row in found.rows] == [1, 3]
    assert {number: line for number, (line, _) in found.damaged.items()} == {2: DAMAGE[why]}
    with pytest.raises(ScenarioError) as refused:
        read_rows(path)
    assert f"{path}, line 2 of 3: damaged (" in str(refused.value)
    assert why in str(refused.value)
    assert "--repair" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 800


def test_only_the_end_of_a_last_line_may_be_missing(tmp_path: Path) -> None:
    path = written(tmp_path / "rounds.jsonl", whole(1), whole(2)[:-9], end=b"")
    assert (len(read_rows(path)), read_lines(path).torn) == (1, whole(2)[:-9])
    written(path, whole(1), whole(2), end=b"")
    assert (len(read_rows(path)), read_lines(path).torn) == (2, b"")
    written(path, whole(1), whole(2)[:-9])
    with pytest.raises(ScenarioError, match="line 2 of 2: damaged"):
        read_rows(path)
    assert read_rows(tmp_path / "nothing.jsonl") == []
    assert read_rows(written(tmp_path / "empty.jsonl", end=b"")) == []


def test_what_is_no_ordinary_file_is_not_read(tmp_path: Path) -> None:
    written(tmp_path / "other", whole(1))
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "other")
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("link", "folder", "pipe"):
        with pytest.raises(ScenarioError, match=rf"{name}\.jsonl: cannot be read .* and no link"):
            content(tmp_path / f"{name}.jsonl")
        with pytest.raises(ScenarioError, match=rf"{name}\.jsonl: is .*expected an ordinary file"):
            check_kinds(tmp_path, [f"{name}.jsonl", "not-there"], [])
    check_kinds(tmp_path, ["other"], ["folder.jsonl", "nowhere"])


def test_a_table_of_json_is_held_against_its_form(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    assert read_table(path, ManifestForm, "x") is None
    path.write_text('{"scenario": {}, "digest": 3, "engine": "ray"}')
    with pytest.raises(ScenarioError, match=r"manifest\.json: damaged \(digest: input should be a valid string\); do this$"):
        read_table(path, ManifestForm, "do this")
    path.write_text('{"scenario": {}, "digest": "d", "engine": "ray", "own": [1]}')
    assert read_table(path, ManifestForm, "x") == {"scenario": {}, "digest": "d", "engine": "ray", "own": [1]}
    with pytest.raises(Damaged, match="expected a table"):
        table_in(b"3")


def test_privacy_that_a_line_names_is_told_whole() -> None:
    spent = ROUND | {"epsilon": {"0": 1.5}, "delta": 1e-5, "privacy_unit": "record"}
    assert fitted(spent, RoundForm) == spent
    for key in ("delta", "privacy_unit"):
        with pytest.raises(Damaged, match=f"{key}: missing"):
            fitted({name: value for name, value in spent.items() if name != key}, RoundForm)
    with pytest.raises(Damaged, match="no_epsilon: missing"):
        fitted(spent | {"epsilon": {"0": None}}, RoundForm)
    assert set(LINES) >= {"rounds.jsonl", "reconstructions.jsonl", "problems.jsonl"}
