"""What was asked of the run: the scenario in words, and as the file that asks for it again."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from fedleak.printable import plural
from fedleak.report.formats import NONE, count, plain
from fedleak.runs.records import RunRecords, rows_of, table
from fedleak.threat import Knowledge

KNOWLEDGE: dict[str, str] = {
    Knowledge.LOCAL_TRAINING.value: "batch size, number of examples, local steps, rates, optimizer, loss, train or eval mode",
    Knowledge.LABELS.value: "the labels of the images, without their order",
    Knowledge.BATCHNORM.value: "the BatchNorm statistics that the client sent back",
    Knowledge.SURROGATE.value: "public images of the same kind",
    Knowledge.DEFENSE.value: "which defenses run on the clients, with their parameters",
}


@dataclass(frozen=True)
class Fact:
    """One line of what was asked."""

    term: str
    value: str
    details: list[str]


@dataclass(frozen=True)
class Grant:
    """One piece of knowledge, and whether the attacker had it."""

    name: str
    meaning: str
    granted: bool


def grants(records: RunRecords) -> list[Grant]:
    """Return every kind of knowledge, those of the run's own that this version does not know last."""
    granted = table(records.manifest, "threat").get("granted")
    names = [str(name) for name in granted] if isinstance(granted, list) else []
    unknown = [name for name in names if name not in KNOWLEDGE]
    known = [Grant(name, meaning, name in names) for name, meaning in KNOWLEDGE.items()]
    return known + [Grant(name, "", True) for name in unknown]


def preset(records: RunRecords) -> str:
    """Return the name of the threat preset."""
    return plain(table(records.manifest, "threat").get("preset") or table(records.scenario, "threat").get("preset"))


def identifiability(records: RunRecords) -> str:
    """Return what the count of equations against unknowns says of any attack; empty where the manifest has none."""
    verdict = table(records.manifest, "identifiability").get("verdict")
    return plain(verdict) if verdict else ""


def facts(records: RunRecords) -> list[Fact]:
    """Return the scenario and the machine as terms and values."""
    scenario, manifest = records.scenario, records.manifest
    data, federation, local = (table(scenario, key) for key in ("data", "federation", "local"))
    versions, machine = table(manifest, "versions"), table(manifest, "machine")
    found = [
        Fact("Data", plain(data.get("source")), _pairs(data, skip=("source", "partition")) + _named("partition", data)),
        Fact("Model", plain(table(scenario, "model").get("name")), _model(records)),
        Fact("Clients", _clients(federation), _named("strategy", federation)),
        Fact(
            "Protocol",
            {"fedsgd": "FedSGD: gradients are sent", "fedavg": "FedAvg: weights are sent"}.get(_protocol(federation), NONE),
            [],
        ),
        Fact("Local training", f"{plain(local['mode'])} mode" if local.get("mode") else NONE, _pairs(local, skip=("mode",))),
        Fact("Truth", _truth(scenario), []),
        *_isolation(table(scenario, "server")),
        Fact("Measured", "", _measured(table(scenario, "evaluation"))),
        Fact("Seed", plain(scenario.get("seed")), []),
        Fact("Engine", plain(manifest.get("engine") or federation.get("engine")), []),
        Fact("Machine", plain(machine.get("platform")), _pairs(machine, skip=("platform",))),
        Fact("Versions", "", [f"{name} {plain(value)}" for name, value in versions.items()]),
        Fact("Digest", plain(manifest.get("digest")), []),
    ]
    return [fact for fact in found if fact.details or fact.value not in ("", NONE)]


def plugins(records: RunRecords, kind: str) -> list[Fact]:
    """Return the scenario's ``"attacks"`` or ``"defenses"`` with the parameters that were set."""
    found = []
    for spec in rows_of(records.scenario, kind):
        details = _pairs(spec, skip=("name", "budget_seconds", "rounds", "clients"))
        details += [f"{key} = {plain(spec[key])}" for key in ("rounds", "clients") if spec.get(key) not in (None, "all")]
        if spec.get("budget_seconds") is not None:
            details.append(f"budget = {plain(spec['budget_seconds'])} CPU seconds an update")
        found.append(Fact(plain(spec.get("name")), "", details))
    return found


def _model(records: RunRecords) -> list[str]:
    sizes = records.manifest.get("parameters")
    shape = table(records.manifest, "input").get("shape")
    details = [] if sizes is None else [f"{count(sizes)} parameters"]
    if isinstance(shape, list) and shape:
        details.append("input " + " × ".join(plain(side) for side in shape))
    return details + _pairs(table(records.scenario, "model"), skip=("name",))


def _clients(federation: dict[str, Any]) -> str:
    clients, sampled, rounds = (federation.get(key) for key in ("clients", "clients_per_round", "rounds"))
    if not isinstance(clients, int) or not isinstance(rounds, int):
        return NONE
    share = "" if sampled is None else f", {plain(sampled)} of them in a round"
    return f"{plural(clients, 'client')}{share}, {plural(rounds, 'round')}"


def _protocol(federation: dict[str, Any]) -> str:
    return str(federation.get("protocol"))


def _truth(scenario: dict[str, Any]) -> str:
    meanings = {"reveal": "reveal: clients return their images for this page", "score": "score: only metrics leave the clients"}
    return meanings.get(str(table(scenario, "evaluation").get("truth")), NONE)


def _isolation(server: dict[str, Any]) -> list[Fact]:
    """Return where attacks ran; nothing for a run from before they could run elsewhere, or without any."""
    if "isolation" not in server or server.get("curious") is False:
        return []
    if server["isolation"] == "process":
        return [Fact("Attacks ran", "in a process of their own, which held nothing of the clients", [])]
    return [
        Fact("Attacks ran", "in the server's own process (isolation = none): a plugin could have reached what it must not", [])
    ]


def _measured(evaluation: dict[str, Any]) -> list[str]:
    unset = {"truth": evaluation.get("truth"), "every": 1}
    return _pairs({key: value for key, value in evaluation.items() if unset.get(key) != value}, skip=())


def _named(key: str, owner: dict[str, Any]) -> list[str]:
    spec = table(owner, key)
    return [f"{key} = {plain(spec.get('name'))}", *_pairs(spec, skip=("name",))] if spec else []


def _pairs(owner: dict[str, Any], skip: tuple[str, ...]) -> list[str]:
    return [f"{key} = {plain(value)}" for key, value in owner.items() if key not in skip and value is not None]


def to_toml(scenario: dict[str, Any]) -> str:
    """Return a scenario as the TOML file that asks for the same run; keys without a value are left out.

    Parameters
    ----------
    scenario : dict
        As the manifest holds it.

    Returns
    -------
    str
        TOML, tables last.
    """
    return "\n".join([*_toml_table((), scenario), *_secret_words(scenario)]).strip() + "\n"


def _secret_words(scenario: dict[str, Any]) -> list[str]:
    """Return what is to be said of the clients' secret, which no page shows, as comments."""
    if "secret" not in scenario:  # from before there was one
        return []
    held = (
        "secret: the fingerprint alone is known here; put the secret in its place" if scenario["secret"] else 'add secret = "..."'
    )
    return [
        "",
        f"# {held}, at the top, to have the same batches and noise:",
        "# it is in the run folder, in the file client.secret.",
    ]


def _toml_table(path: tuple[str, ...], owner: dict[str, Any]) -> list[str]:
    lines, later = [], []
    for key, value in owner.items():
        here = (*path, key)
        if isinstance(value, dict) and len(path) == 0:
            later += ["", f"[{_toml_path(here)}]", *_toml_table(here, value)]
        elif isinstance(value, list) and len(path) == 0 and value and all(isinstance(item, dict) for item in value):
            for item in value:
                later += ["", f"[[{_toml_path(here)}]]", *_toml_table(here, item)]
        elif value is not None:
            lines.append(f"{_toml_key(key)} = {_toml_value(value)}")
    return lines + later


def _toml_path(path: tuple[str, ...]) -> str:
    return ".".join(_toml_key(key) for key in path)


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return (
            "{ " + ", ".join(f"{_toml_key(key)} = {_toml_value(item)}" for key, item in value.items() if item is not None) + " }"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, float):
        # TOML's infinity and NaN are lower case, as Python's repr writes them.
        return repr(value)
    # A JSON string is a TOML string, but for the delete character, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
