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
    "HonestButCurious": "fedleak.positions.honest_but_curious",
    "InputSpec": "fedleak.observation",
    "Knowledge": "fedleak.threat",
    "LocalTraining": "fedleak.observation",
    "Observation": "fedleak.observation",
    "Reconstruction": "fedleak.attacks.base",
    "Result": "fedleak.experiment.run",
    "Scenario": "fedleak.scenario.schema",
    "Seed": "fedleak.seeding",
    "SweepResult": "fedleak.sweeps.sweep",
    "answer": "fedleak.apps.answers",
    "attack": "fedleak.experiment.run",
    "attack_run": "fedleak.experiment.run",
    "curious": "fedleak.apps.curious",
    "leaderboard": "fedleak.sweeps.leaderboard",
    "load_scenario": "fedleak.scenario.schema",
    "observe": "fedleak.observation",
    "run": "fedleak.experiment.run",
    "sweep": "fedleak.sweeps.sweep",
}

if TYPE_CHECKING:
    from fedleak.apps.answers import answer
    from fedleak.apps.curious import curious
    from fedleak.attacks.base import Attack, Reconstruction
    from fedleak.defenses.base import Defense
    from fedleak.experiment.attack_again import attack_run
    from fedleak.experiment.result import Result
    from fedleak.experiment.run import attack, run
    from fedleak.modalities.image import InputSpec
    from fedleak.observation import LocalTraining, Observation, observe
    from fedleak.positions.honest_but_curious import HonestButCurious
    from fedleak.scenario.schema import Scenario, load_scenario
    from fedleak.seeding import Seed
    from fedleak.sweeps.leaderboard import leaderboard
    from fedleak.sweeps.sweep import SweepResult, sweep
    from fedleak.threat import Knowledge


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fedleak' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)
