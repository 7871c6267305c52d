"""A defense too weak to change the update is said so: in terminal, rows and report, in a second attack, and in verdicts."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from fedleak.cli.live import Live
from fedleak.cli.terminal import safe_console
from fedleak.evaluation.flags import UNCHANGED
from fedleak.experiment.attack_again import attack_run
from fedleak.experiment.run import run
from fedleak.scenario.schema import AttackSpec, parse_scenario
from fedleak.sweeps.rows import run_rows
from fedleak.sweeps.verdicts import verdicts

FEDAVG = {"protocol": "fedavg", "clients": 2, "rounds": 1}


def rows_of(folder: Path, name: str = "reconstructions.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def ran(tmp_path: Path, defense: dict[str, Any], listener: Any = None, **keys: Any) -> Path:
    table = {
        "name": "x",
        "secret": "00" * 16,
        "federation": {"clients": 2, "rounds": 1},
        "attacks": [{"name": "analytic"}],
        "defenses": [defense],
        "model": {"name": "mlp", "hidden": [32]},
        **keys,
    }
    options = {} if listener is None else {"listener": listener}
    return run(parse_scenario(table), out=tmp_path / "run", **options).path


@pytest.mark.parametrize(
    ("defense", "keys", "undefended"),
    [
        ({"name": "gaussian-noise", "std": 1e-20}, {}, True),
        ({"name": "gaussian-noise", "std": 0.1}, {}, False),
        ({"name": "gaussian-noise", "std": 1e-20}, {"federation": FEDAVG}, True),
        ({"name": "dp-sgd", "max_norm": 1e6, "noise_multiplier": 0.0}, {}, True),
        ({"name": "dp-sgd", "max_norm": 1e-3, "noise_multiplier": 1.0}, {}, False),
        ({"name": "grad-defense", "scale": 1e-9}, {}, True),
        # The noise shows in the gradient, and is lost where the step is rounded to the weights.
        ({"name": "grad-defense", "scale": 2e-6}, {"federation": FEDAVG, "local": {"learning_rate": 1e-9, "steps": 1}}, True),
        ({"name": "grad-defense", "scale": 1e-5}, {"federation": FEDAVG, "local": {"learning_rate": 0.1, "steps": 1}}, False),
        ({"name": "dropout", "p": 0.5}, {}, False),
        ({"name": "precode"}, {}, False),
    ],
)
def test_rows_say_which_updates_were_sent_undefended(tmp_path, defense, keys, undefended):
    folder = ran(tmp_path, defense, **keys)
    flagged = {UNCHANGED in row["flags"] for row in rows_of(folder)}
    told = rows_of(folder, "rounds.jsonl")[1].get("undefended", [])
    assert flagged == {undefended}
    assert told == ([0, 1] if undefended else [])
    assert ("sent undefended" in (folder / "report.html").read_text()) is undefended


def test_the_terminal_says_it_and_so_does_an_attack_made_again_while_captures_do_not(tmp_path):
    shown = io.StringIO()
    with Live(safe_console(file=shown, width=200)) as live:
        folder = ran(tmp_path, {"name": "gaussian-noise", "std": 1e-20}, live)
    assert "the defenses left the updates as they were: sent undefended by client 0, 1" in shown.getvalue()
    attack_run(folder, [AttackSpec(name="analytic", title="again")])
    assert {UNCHANGED in row["flags"] for row in rows_of(folder) if row["attack"] == "again"} == {True}
    assert not any(b"undefended" in path.read_bytes() for path in (folder / "captures").iterdir()), "no attack is told"


def test_no_verdict_counts_it_as_defended(tmp_path):
    folder = ran(tmp_path, {"name": "gaussian-noise", "std": 1e-20})
    [row] = run_rows(folder)
    assert row["unchanged"] == 1.0
    examples = [{"name": str(n), "gain": 0.0, "identified": False} for n in range(10)]
    cell = {"setting": "s", "seed": 1, "family": "f", "strength": "", "attack": "a", "modality": "image", "knows_defense": True}
    for unchanged, word in ((0.0, "blocks"), (0.1, "inconclusive"), (1.0, "inconclusive")):
        defended = {**cell, "defense": "weak", "control": False, "examples": examples, "unchanged": unchanged}
        leaking = [example | {"gain": 20.0} for example in examples]
        control = {**cell, "defense": "none", "control": True, "examples": leaking, "unchanged": 0.0}
        rows = [{**kind, "cell": f"{kind['defense']}-{seed}", "seed": seed} for seed in (1, 2) for kind in (defended, control)]
        found = verdicts(rows)
        [judged] = [verdict for verdict in found if not verdict.control]
        assert judged.word == word, judged.reason
        assert ("sent undefended" in judged.reason) is (word == "inconclusive")
