"""What holds for every test; and a run folder with tiny images, as a finished run leaves it, for tests to take apart."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fedleak.evaluation.summary import summarise
from fedleak.scenario.schema import Scenario, Server, parse_scenario

Row = dict[str, Any]
CLASSES = ["cat", "dog", "frog", "ship"]

# Attacks run in the tests' own process, except where a test asks for one of their own: that takes two seconds to start. Before
# any test module makes a scenario.
Server.model_fields["isolation"].default = "none"
Server.model_rebuild(force=True)
Scenario.model_fields["server"].default = Server()
# Two runs of a test's scenario have the same batches, except where a test asks for none.
Scenario.model_fields["secret"].default = "fedcba9876543210fedcba9876543210"
Scenario.model_rebuild(force=True)


@pytest.fixture
def secretless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give scenarios no secret unasked, as outside of the tests."""
    with monkeypatch.context() as patched:
        patched.setattr(Scenario.model_fields["secret"], "default", None)
        Scenario.model_rebuild(force=True)
        yield
    Scenario.model_rebuild(force=True)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Compute on one thread: networks this small only wait for a second one, above all beside other workers."""
    torch.set_num_threads(1)


def picture(path: Path, seed: int, side: int = 4) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return f"images/{path.name}"


def image_row(folder: Path, server_round: int, client: int, attack: str, psnr: float | None, /, **changes: Any) -> Row:
    """One graded image; the private image depends on the client and its index only, not on the round."""
    image = changes.get("example", 0)
    metrics = {} if psnr is None else {"psnr": psnr, "ssim": 0.9, "mse": math.pow(10, -psnr / 10)}
    metrics |= {name: changes.pop(name) for name in ("ssim", "lpips") if name in changes}
    stem = f"r{server_round:03d}-c{client:03d}"
    row: Row = {
        "round": server_round,
        "client": client,
        "attack": attack,
        "modality": "image",
        "threat": "local-training-known",
        "defenses": [],
        "example": image,
        "metrics": metrics,
        "label": client % len(CLASSES),
        "label_restored": client % len(CLASSES),
        "label_correct": True,
        "identified": True,
        "seconds": 2.0,
        "cpu_seconds": 1.5,
        "iterations": 120,
        "stop_reason": "converged",
        "loss": 1e-9,
        "flags": [],
        "error": None,
        "baseline": {"random": {"psnr": 8.0, "ssim": 0.0, "mse": 0.15}, "mean_image": {"psnr": 13.0, "ssim": 0.2, "mse": 0.05}},
        "truth": picture(folder / "images" / f"{stem}-truth-{image}.png", seed=100 * client + image),
        "exhibit": picture(folder / "images" / f"{stem}-{attack}-{image}.png", seed=10_000 + 100 * client + server_round),
    }
    return row | changes


def failed_row(server_round: int, client: int, attack: str, error: str) -> Row:
    nothing = dict.fromkeys(("example", "label", "label_restored", "label_correct", "identified", "loss"))
    facts = {
        "round": server_round,
        "client": client,
        "attack": attack,
        "modality": "image",
        "threat": "local-training-known",
        "defenses": [],
    }
    cost = {"seconds": 0.1, "cpu_seconds": 0.1, "iterations": 0, "stop_reason": "failed", "flags": ["attack-failed"]}
    return nothing | facts | cost | {"error": error, "metrics": {}, "baseline": {}, "truth": None, "exhibit": None}


def write_lines(path: Path, rows: list[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Make a run folder from its rows; keywords change the scenario's top-level tables or the manifest."""

    def make(
        rows: Callable[[Path], list[Row]] | None = None,
        rounds: list[Row] | None = None,
        manifest: Row | None = None,
        summary: bool = True,
        **scenario: Any,
    ) -> Path:
        folder = tmp_path / "run"
        folder.mkdir()
        found = (rows or default_rows)(folder)
        asked = {
            "name": "quick",
            "federation": {"rounds": 2, "clients": 2},
            "attacks": [{"name": "dlg"}, {"name": "analytic"}],
            **scenario,
        }
        parsed = parse_scenario(asked)
        content: Row = {
            "scenario": json.loads(parsed.to_json()),
            "digest": parsed.digest,
            "created": "2025-03-04T05:06:07+00:00",
            "versions": {"fedleak": "0.1.0", "torch": "2.9.0"},
            "machine": {"platform": "Linux", "cpus": 2, "device": "cpu"},
            "engine": "inprocess",
            "threat": {"preset": parsed.threat.preset, "granted": sorted(parsed.threat.granted)},
            "input": {"shape": [3, 4, 4], "num_classes": 4},
            "class_names": CLASSES,
            "parameters": 19438,
            "has_test_split": True,
        }
        (folder / "manifest.json").write_text(json.dumps(content | (manifest or {})), encoding="utf-8")
        write_lines(folder / "rounds.jsonl", default_rounds() if rounds is None else rounds)
        write_lines(folder / "reconstructions.jsonl", found)
        if summary:
            (folder / "summary.json").write_text(json.dumps({"scenario": "quick", "leakage": summarise(found)}), encoding="utf-8")
        return folder

    return make


def default_rows(folder: Path) -> list[Row]:
    """Two clients, two rounds, the same two private images in each; ``analytic`` fails on client 1."""
    rows = []
    for server_round in (1, 2):
        rows += [image_row(folder, server_round, client, "dlg", 41.0 + client) for client in (0, 1)]
        rows += [image_row(folder, server_round, 0, "analytic", 12.0), failed_row(server_round, 1, "analytic", "no linear layer")]
    return rows


def default_rounds() -> list[Row]:
    done = {"clients": [0, 1], "train_loss": 2.2, "seconds": 1.0, "attack_seconds": 2.0, "bytes_received": 10}
    return [
        {"round": 0, "accuracy": 0.1, "loss": 2.3},
        {"round": 1, "failures": [], "accuracy": 0.2, "loss": 2.1, **done},
        {"round": 2, "failures": [{"client": 1, "reason": "ran out of memory"}], "accuracy": 0.3, "loss": 1.9, **done},
    ]


class Page(HTMLParser):
    """Start tags with their attributes, text outside script and style, and what is left open."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.mismatched: list[str] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.mismatched.append(tag)

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def headline(self) -> str:
        inner = self.source.split("<h1>")[1].split("</h1>")[0]
        return " ".join(inner.replace("</em>", "").replace('<em class="leaks">', "").replace("<em>", "").split())


@pytest.fixture
def lines() -> SimpleNamespace:
    """Makers of rows and pictures."""
    return SimpleNamespace(image=image_row, failed=failed_row, default=default_rows, rounds=default_rounds, picture=picture)


@pytest.fixture
def read() -> Callable[[Path], Page]:
    """Read a page as a browser does."""
    return Page
