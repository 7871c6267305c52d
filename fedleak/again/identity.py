"""What decides an order's results, as one digest: results that were kept under another digest are made again."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fedleak.attacks.base import JOINT, Attack
from fedleak.attacks.labels.base import label_rules
from fedleak.defenses.base import defenses
from fedleak.models.base import models
from fedleak.scenario.schema import AttackSpec, Scenario

ROOMS = (
    "attacks",
    "defenses",
    "errors",
    "local",
    "modalities",
    "models",
    "observation",
    "payload",
    "process",
    "registry",
    "sandbox",
    "scenario",
    "seeding",
    "threat",
)
"""All of fedleak that a worker imports: each of its files counts, as each may decide what an attack makes of a capture."""


def attack_digest(scenario: Scenario, spec: AttackSpec, attack: Attack, shared: str) -> str:
    """Return the digest of all that decides what ``attack`` makes of a capture, but the capture, the device and the threads.

    Parameters
    ----------
    scenario : Scenario
        The run's; its other attacks do not count.
    spec : AttackSpec
        Which attack, and its parameters.
    attack : Attack
        Built from ``spec``.
    shared : str
        Digest of the network and of the public images; see :func:`fedleak.sandbox.packing.tensors_digest`.
    """
    rest = scenario.model_copy(update={"attacks": ()}).digest
    names = [scenario.model.name, *(defense.name for defense in scenario.defenses), *_texts(spec.parameters)]
    used: list[Any] = [type(attack), models.get(scenario.model.name), *(defenses.get(one.name) for one in scenario.defenses)]
    if attack.config.labels and attack.config.labels != JOINT:
        used.append(label_rules.get(attack.config.labels))
    plugins = [plugin for plugin in used if isinstance(plugin, type)]  # a model of one's own is a function, known by its name
    code = sorted({hashlib.sha256(path.read_bytes()).hexdigest() for path in _sources(plugins, names)})
    return text_digest([version("fedleak"), str(torch.__version__), rest, spec.name, spec.parameters, shared, code])


def text_digest(facts: Any) -> str:
    """Return the SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _sources(classes: Iterable[type], names: list[str]) -> Iterator[Path]:
    """Yield the files of fedleak's own rooms in use, of the plugins' classes and their bases, and of each ``module:name``."""
    root = Path(__file__).parents[1]
    for room in ROOMS:
        yield from (root / room).rglob("*.py") if (root / room).is_dir() else [root / f"{room}.py"]
    modules = [base.__module__ for plugin in classes for base in plugin.__mro__]
    modules += [name.partition(":")[0] for name in names if ":" in name]
    for name in modules:
        module = sys.modules.get(name)
        try:
            found = inspect.getsourcefile(module) if module is not None else None
        except TypeError:  # built in
            continue
        if found is not None and Path(found).is_file():
            yield Path(found)


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []
