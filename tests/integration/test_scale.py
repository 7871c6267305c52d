"""Memory stays flat over the rounds of a federation with many clients: nothing of a round is held once it is over."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

CLIENTS, SAMPLED, ROUNDS, WINDOW = 200, 40, 30, 6
UPDATE = 79_136  # bytes of LeNet's update as Flower sends it
LEAK = SAMPLED * (ROUNDS - WINDOW) * UPDATE
"""What memory would grow by, in bytes, if one update of each client and round were kept: 76 MB."""

RUN = """
import sys
from fedleak.cli.app import main
from fedleak.server.referee import Referee

if sys.argv.pop(1) == "leaky":
    kept, aggregate = [], Referee.aggregate

    def keep(self, received):
        kept.append([values.copy() for reply in received.good.values() for values in reply.arrays.values()])
        return aggregate(self, received)

    Referee.aggregate = keep
main()
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def write_images(folder: Path) -> None:
    """Write two images of one colour for each client, and 100 test images, as Parquet."""

    def encoded(index: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (32, 32), (index % 251, index * 3 % 251, index * 7 % 251)).save(file, "PNG")
        return file.getvalue()

    folder.mkdir()
    for split, size in (("train", 2 * CLIENTS), ("test", 100)):
        table = {"img": [{"bytes": encoded(index)} for index in range(size)], "label": [index % 10 for index in range(size)]}
        pq.write_table(pa.table(table), folder / f"{split}.parquet")


def growth(folder: Path, how: str, *tables: str) -> int:
    """Return the bytes by which the server's process grew from the first six rounds to the last six, in a process of its own.

    Of each six the least counts: what a round needs for a moment comes and goes, by some 30 MB.
    """
    write_images(folder / "images")
    scenario = folder / "many.toml"
    scenario.write_text(
        f"""
name = "many"
[data]
source = "parquet"
path = "{folder / "images"}"
[federation]
clients = {CLIENTS}
clients_per_round = {SAMPLED}
rounds = {ROUNDS}
[evaluation]
every = 30
{"".join(tables)}
""",
        encoding="utf-8",
    )
    command = [sys.executable, "-c", RUN, how, "run", str(scenario), "--out", str(folder / "run"), "--quiet", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    held = [json.loads(line)["memory"]["resident"] for line in (folder / "run/rounds.jsonl").read_text().splitlines()[1:]]
    assert len(held) == ROUNDS
    return int(min(held[-WINDOW:]) - min(held[:WINDOW]))


@pytest.mark.slow
def test_memory_is_flat_while_every_round_is_recorded_and_attacked(tmp_path: Path) -> None:
    attack = '[[attacks]]\nname = "closed-form"\nclients = 1\nrounds = [1, 6, 12, 18, 24, 30]\n'
    grown = growth(tmp_path, "plain", attack)
    print(f"grown by {grown / 1e6:.1f} MB")
    assert grown < LEAK / 2
    assert len(list((tmp_path / "run/captures").iterdir())) == SAMPLED * ROUNDS


@pytest.mark.slow
def test_one_update_kept_of_each_client_and_round_would_be_seen(tmp_path: Path) -> None:
    grown = growth(tmp_path, "leaky", "[server]\ncurious = false\n")
    print(f"grown by {grown / 1e6:.1f} MB")
    assert grown > LEAK / 2
