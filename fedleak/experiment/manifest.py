"""What a run folder says of its run: the manifest at the start, the summary at the end."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from fedleak.errors import ScenarioError
from fedleak.evaluation.beside import found_beside
from fedleak.evaluation.privacy import spent
from fedleak.evaluation.resources import disk, resources
from fedleak.evaluation.summary import summarise
from fedleak.evaluation.utility import utility
from fedleak.experiment.check import Checked
from fedleak.experiment.difficulty import difficulty
from fedleak.models.digest import model_digest
from fedleak.payload import Payload
from fedleak.runs.folder import CANARIES, CHECKPOINT, INFERENCES, OWN_APP, Row, RunFolder
from fedleak.scenario.evaluation import DELTA
from fedleak.scenario.schema import Scenario
from fedleak.server.app import final_model


def write_summary(folder: RunFolder) -> Row:
    """Write and return ``summary.json`` from what the folder holds.

    Raises
    ------
    ScenarioError
        If a file of the folder is damaged; the message names it.
    """
    manifest, scenario, rounds = (
        folder.manifest,
        folder.scenario,
        [row for row in folder.rows("rounds.jsonl") if row["round"] > 0],
    )
    rows = folder.rows("reconstructions.jsonl")
    failed = {
        (row["round"], row["client"], row["attack"]) for row in rows if row["error"] and "invalid-reply" not in row["flags"]
    }
    has_model = (folder.path / CHECKPOINT).exists()
    summary = {
        "scenario": scenario.name,
        "digest": manifest["digest"],
        "engine": manifest["engine"],
        "seed": scenario.seed,
        "rounds": len(rounds),
        "client_errors": sum(len(row["failures"]) for row in rounds),
        "attack_failures": len(failed),
        "utility": utility(rounds),
        "privacy": spent(rounds),
        "resources": resources(rounds) | {"disk": disk(folder.path)},
        "leakage": summarise(rows),
        **found_beside(
            folder.rows(INFERENCES),
            folder.rows(CANARIES),
            manifest["scenario"]["seed"],
            manifest["scenario"].get("evaluation", {}).get("delta", DELTA),
        ),
        "model_sha256": model_digest(final_model(folder)) if has_model else "",
    }
    folder.write_json("summary.json", summary)
    return summary


def refuse_own_app(folder: RunFolder, what: str) -> None:
    """Refuse the run folder of an app of one's own, which cannot do ``what`` from here."""
    if folder.manifest.get("engine") == OWN_APP:
        raise ScenarioError(
            f"{folder.path}: is of an app of one's own, by fedleak.curious; its network, data and clients are there alone, so "
            f"that from here it cannot {what}"
        )


def default_folder(scenario: Scenario) -> Path:
    """Return ``runs/NAME-TIME``, with everything in the name that a folder should not hold replaced."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in scenario.name).strip(".-") or "run"
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def make_manifest(checked: Checked, device: str) -> Row:
    """Return what a run folder says of its run: scenario, versions, machine, threat, input."""
    scenario, data, model = checked.scenario, checked.data, checked.model
    hard = difficulty(checked)
    payload = Payload.of(model, scenario.federation.payload)
    packages = ("fedleak", "flwr", "torch", "torchvision", "numpy")
    return {
        "scenario": json.loads(scenario.public.to_json()),
        "digest": scenario.digest,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "device": device},
        "engine": scenario.federation.engine,
        "threat": {"preset": scenario.threat.preset, "granted": sorted(scenario.threat.granted)},
        "input": vars(data.input),
        "class_names": list(data.source.class_names),
        "parameters": sum(p.numel() for p in model.parameters()),
        "model_names": list(payload.select(model)),
        **({} if payload.whole else {"payload": {"trained": payload.trained, "carried": payload.carried, "kept": payload.kept}}),
        "has_test_split": data.source.test is not None,
        "identifiability": {"verdict": hard.verdict, "layers": [vars(layer) for layer in hard.layers]},
    }
