"""From a run folder to the rows of a table: one for each attack, with every example's gain above a guess."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from fedleak.attacks.base import attacks
from fedleak.errors import ScenarioError, ends_contained
from fedleak.evaluation.flags import MISFIT, UNCHANGED
from fedleak.modalities.find import measure_of
from fedleak.runs.folder import Row
from fedleak.runs.records import RunRecords, number, read_records, table
from fedleak.scenario.code import refuse_code
from fedleak.scenario.schema import AttackSpec, Scenario
from fedleak.threat import Knowledge


def run_rows(folder: Path, *, known: Collection[str] = (), allow_code: bool = False) -> list[Row]:
    """Return one row for each attack of a run; one with ``attack`` null for a run that attacked nothing.

    Parameters
    ----------
    folder : Path
        A run folder.
    known : collection of str
        Names of attacks as ``package.module:name`` that may be imported, to ask them what they need to know.
    allow_code : bool
        Whether all may.

    Returns
    -------
    list of dict
        ``metrics`` are the measure's figures and ``baseline`` the headline of each guess, means over examples; ``best`` is the
        headline of the example rebuilt best. Shares are in [0, 1]; ``cpu_seconds`` for each attacked update; ``seconds``,
        ``bytes`` and ``coded_bytes`` for each client's reply, as in the summary's ``cost``; ``misfit`` is the
        share of updates that do not fit the local training told; ``examples`` holds, one by one, a
        name (equal for the same private example in two rounds), the gain, where it is shown, and whether it was
        identified; ``empirical_epsilon``, ``empirical_low``, ``empirical_high``, ``membership_auc``, ``membership_low`` and
        ``membership_tpr``, where canaries or membership tests were asked for. A value is ``None`` where it is unknown.

    Raises
    ------
    ScenarioError
        If the folder is no run folder, or damaged, or names an attack that nobody has allowed.
    """
    records = read_records(folder)
    scenario = _scenario(records, folder)
    if not allow_code:
        refuse_code(scenario, str(folder / "manifest.json"), "attacks", known=known)
    facts = _facts(records, scenario)
    attacked: dict[str, list[Row]] = {spec.result_name: [] for spec in scenario.attacks} if scenario.server.curious else {}
    for row in records.rows:
        if "invalid-reply" not in (row.get("flags") or ()):
            attacked.setdefault(str(row.get("attack")), []).append(row)
    specs = {spec.result_name: spec for spec in scenario.attacks}
    if not attacked:
        return [{**facts, "attack": None, "error": None}]
    return [
        {**facts, "attack": name, "error": None, **_knowledge(specs.get(name), scenario), **_leak(rows, folder)}
        for name, rows in attacked.items()
    ]


def failed_rows(reason: str) -> list[Row]:
    """Return the row of a run that broke off."""
    return [{"attack": None, "error": " ".join(reason.split())}]


def _scenario(records: RunRecords, folder: Path) -> Scenario:
    try:
        return Scenario.model_validate(records.scenario)
    except ValueError as error:
        raise ScenarioError(f"{folder}: its manifest.json holds no scenario that this version can read") from error


def _facts(records: RunRecords, scenario: Scenario) -> Row:
    rounds = [row for row in records.rounds if (number(row.get("round")) or 0) >= 1]
    accuracy = [value for row in records.rounds if (value := number(row.get("accuracy"))) is not None]
    failures = [failure for row in rounds for failure in (row.get("failures") or ()) if isinstance(failure, dict)]
    privacy, cost = table(records.summary, "privacy"), table(table(records.summary, "utility"), "cost")
    return {
        "threat": scenario.threat.preset,
        "defense_known": scenario.threat.defense_known,
        "model": scenario.model.name,
        "model_parameters": scenario.model.parameters,
        "data": scenario.data.source,
        "image_size": scenario.data.image_size,
        "protocol": scenario.federation.protocol,
        "batch": scenario.local.batch_size,
        "steps": scenario.local.steps,
        "rounds": len(rounds),
        "client_errors": len(failures),
        "client_error": str(failures[0].get("reason")) if failures else None,
        "accuracy": accuracy[-1] if accuracy else None,
        "epsilon": number(privacy.get("epsilon")),
        **_beside(records.beside),
        **{key: number(cost.get(key)) for key in ("seconds", "bytes", "coded_bytes")},
    }


def _beside(found: Row) -> Row:
    """Return the empirical epsilon of the nearest observer with its interval, and the best membership test's figures."""
    observers = table(table(found, "empirical_epsilon"), "observers")
    nearest: Row = next(iter(observers.values()), {})
    tests = [one["over_rounds"] for one in found.get("membership") or () if one["over_rounds"] is not None]
    best: Row = max(tests, key=lambda one: one["auc"]["value"], default={})
    auc = table(best, "auc")
    return {
        "empirical_epsilon": nearest.get("epsilon"),
        "empirical_low": nearest.get("low"),
        "empirical_high": nearest.get("high"),
        "membership_auc": auc.get("value"),
        "membership_low": auc.get("low"),
        "membership_tpr": table(best, "tpr").get("value"),
    }


def _knowledge(spec: AttackSpec | None, scenario: Scenario) -> Row:
    if spec is None:
        return {"plugin": None, "parameters": {}, "knows_defense": False}
    try:
        with ends_contained(f"attack '{spec.name}'"):
            attack = attacks.get(spec.name)(**spec.parameters)
            needs = attack.needs("gradient" if scenario.federation.protocol == "fedsgd" else "weights")
            adapts = all(attack.goes_through(defense.name) for defense in scenario.defenses)
    except ScenarioError:
        needs, adapts = frozenset(), False  # the run's own plugin, not installed here: no claim can rest on what it knows
    knows = Knowledge.DEFENSE in needs and scenario.threat.defense_known and adapts
    return {"plugin": spec.name, "parameters": spec.parameters, "knows_defense": knows}


def _leak(rows: list[Row], folder: Path) -> Row:
    measure = measure_of(rows)
    values = [value for row in rows if (value := measure.value(row)) is not None]
    graded = [row for row in rows if measure.value(row) is not None]
    updates = {(row.get("round"), row.get("client")): row for row in rows}
    examples = [
        {
            "name": _name(row, folder),
            "gain": measure.gain(row),
            "identified": row.get("identified"),
            "exhibit": row.get("exhibit"),
        }
        for row in rows
    ]
    gains = [example["gain"] for example in examples if example["gain"] is not None]
    return {
        "modality": measure.modality,
        "graded": len(graded),
        "failures": len(rows) - len(graded),
        "unchanged": _mean(UNCHANGED in (row.get("flags") or ()) for row in rows),
        "failure": next((str(row["error"]) for row in rows if row.get("error")), None),
        "metrics": {one.name: _mean(measure.value(row, one.name) for row in graded) for one in measure.figures},
        "best": max(values, default=None),
        "gain": _mean(gains),
        "gain_max": max(gains, default=None),
        "baseline": {guess.name: _mean(measure.guess(row, guess.name) for row in graded) for guess in measure.baselines},
        "label_accuracy": _mean(row.get("label_correct") for row in rows),
        "identification": _mean(row.get("identified") for row in rows),
        "cpu_seconds": _mean(row.get("cpu_seconds") for row in updates.values()),
        "misfit": _mean(float(MISFIT in (row.get("flags") or ())) for row in updates.values()),
        "examples": examples,
    }


def _name(row: Row, folder: Path) -> str:
    """Name the private example: by what it holds where it was revealed, and by its place elsewhere."""
    truth = row.get("truth")
    path = folder / truth if isinstance(truth, str) else None
    if path is not None and path.is_file() and path.resolve().is_relative_to(folder.resolve()):
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return f"r{row.get('round')}-c{row.get('client')}-{row.get('example')}"


def _mean(values: Iterable[Any]) -> float | None:
    found = [float(value) for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(found) if found else None
