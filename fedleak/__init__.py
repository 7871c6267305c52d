"""fedleak: a federated-learning testbed with an attacker built in.

Flower clients train on private images; an honest-but-curious server rebuilds their batches from the updates it
receives. ``fedleak.run(scenario)`` runs one experiment; every public name below is loaded when first used, so that
importing the package imports neither torch nor ray.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# Flower reads these when it is first imported: no telemetry, no update check, no reinstalling of torch per run.
for _name, _value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}.items():
    os.environ.setdefault(_name, _value)

__version__ = "0.1.0"

__all__ = [
    "Attack",
    "Defense",
    "HonestButCurious",
    "InputSpec",
    "Knowledge",
    "LocalTraining",
    "Observation",
    "Reconstruction",
    "Result",
    "Scenario",
    "Seed",
    "SweepResult",
    "__version__",
    "answer",
    "attack",
    "attack_run",
    "curious",
    "leaderboard",
    "load_scenario",
    "observe",
    "run",
    "sweep",
]

_HOME = {
    "Attack": "fedleak.attacks.base",
    "Defense": "fedleak.defenses.base",
    "HonestButCurious": "fedleak.server.curious",
    "InputSpec": "fedleak.observation",
    "Knowledge": "fedleak.threat",
    "LocalTraining": "fedleak.observation",
    "Observation": "fedleak.observation",
    "Reconstruction": "fedleak.attacks.base",
    "Result": "fedleak.api",
    "Scenario": "fedleak.scenario",
    "Seed": "fedleak.seeding",
    "SweepResult": "fedleak.sweeps.sweep",
    "answer": "fedleak.client.answers",
    "attack": "fedleak.api",
    "attack_run": "fedleak.api",
    "curious": "fedleak.dropin",
    "leaderboard": "fedleak.sweeps.leaderboard",
    "load_scenario": "fedleak.scenario",
    "observe": "fedleak.observation",
    "run": "fedleak.api",
    "sweep": "fedleak.sweeps.sweep",
}

if TYPE_CHECKING:
    from fedleak.api import Result, attack, attack_run, run
    from fedleak.attacks.base import Attack, Reconstruction
    from fedleak.client.answers import answer
    from fedleak.defenses.base import Defense
    from fedleak.dropin import curious
    from fedleak.observation import InputSpec, LocalTraining, Observation, observe
    from fedleak.scenario import Scenario, load_scenario
    from fedleak.seeding import Seed
    from fedleak.server.curious import HonestButCurious
    from fedleak.sweeps.leaderboard import leaderboard
    from fedleak.sweeps.sweep import SweepResult, sweep
    from fedleak.threat import Knowledge


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedleak' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
