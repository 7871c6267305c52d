"""A full disk ends a run with one line; the folder stays valid, and with room again the run goes on to the same numbers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedleak.errors import FedleakError
from fedleak.experiment import run as api
from fedleak.runs.folder import RunFolder
from fedleak.runs.records import read_records
from fedleak.scenario.schema import Scenario

# No file may grow beyond so many bytes: what the system answers to the byte after is what a full disk answers.
LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from fedleak.cli.app import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "rounds_done"), [(3_000, 0), (21_000, 1)])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    build: Callable[..., Scenario], facts: Callable[[Path], Any], tmp_path: Path, limit: int, rounds_done: int, quick: None
) -> None:
    toml = tmp_path / "s.toml"
    toml.write_text(
        'name = "t"\nsecret = "fedcba9876543210fedcba9876543210"\n'
        'data.image_size = 8\nmodel = {name = "mlp", hidden = [4]}\nfederation = {clients = 2, rounds = 12}\n'
        'local.batch_size = 4\n[[attacks]]\nname = "inverting-gradients"\niterations = 1\n'
    )
    straight = api.run(toml, out=tmp_path / "straight", device="cpu")
    command = [
        sys.executable,
        "-c",
        LIMITED,
        str(limit),
        "run",
        str(toml),
        "--out",
        str(tmp_path / "full"),
        "--device",
        "cpu",
        "-q",
    ]
    # Half a file of bytecode, cut at the limit, would be left behind for others to read.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.strip()]
    assert "cannot be written (" in line
    assert "File too large" in line
    assert "make room" in line
    folder = RunFolder.open(tmp_path / "full")
    assert not list(folder.path.rglob("*.tmp"))
    for name in ("rounds.jsonl", "reconstructions.jsonl"):
        text = (folder.path / name).read_text() if (folder.path / name).exists() else ""
        assert all(json.loads(row) for row in text.splitlines())
    read_records(folder.path)
    if rounds_done:
        assert folder.load_checkpoint()[0] >= rounds_done
        resumed = api.run(toml, resume=folder.path, device="cpu")
        assert facts(resumed.path) == facts(straight.path)


def test_rows_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(tmp_path / "run", {})
    folder.append("rounds.jsonl", [{"round": 0}])

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FedleakError, match=r"cannot be written \(No space left on device\).*--resume"):
        folder.append("rounds.jsonl", [{"round": 1}, {"round": 2}])
    assert (folder.path / "rounds.jsonl").read_text() == '{"round": 0}\n'
