"""Runs one attack as a part of another, with what is left of the budget."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import nn
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from fedleak.attacks.base import Budget, Reconstruction, attacks
from fedleak.errors import AttackError
from fedleak.observation import Observation
from fedleak.seeding import Seed


@dataclass(frozen=True)
class Trial:
    """What came of an attack.

    Attributes
    ----------
    name : str
        Of the attack.
    result : Reconstruction or None
        With images; ``None`` where it failed.
    error : str
        Why it failed.
    """

    name: str
    result: Reconstruction | None
    error: str = ""

    @property
    def loss(self) -> float:
        """The attack's own loss; infinite where it has none."""
        loss = None if self.result is None else self.result.loss
        return inf if loss is None or not isfinite(loss) else loss

    @property
    def fit(self) -> str:
        """How well the solution fits, in words."""
        return "its gradient was not compared" if self.loss == inf else f"its gradient is off by {self.loss:.1e}"


def attempt(
    name: str,
    observation: Observation,
    model: nn.Module,
    *,
    rng: Seed,
    device: torch.device,
    budget: Budget,
    labels: str | None = None,
    iterations: int | None = None,
) -> Trial:
    """Run the attack called ``name`` with what is left of ``budget``; a named failure is a trial without a result.

    Parameters
    ----------
    labels : str, optional
        Its label rule.
    iterations : int, optional
        Its iterations; by default its own.
    """
    plugin = attacks.get(name)
    left = None if budget.seconds is None else max(budget.seconds - budget.spent, 1e-3)
    parameters: dict[str, Any] = {"labels": labels} if iterations is None else {"labels": labels, "iterations": iterations}
    attack = plugin(budget_seconds=left, **parameters)
    missing = plugin.needs(observation.kind) - observation.granted
    if observation.kind not in plugin.kinds or missing:
        return Trial(name, None, f"needs {', '.join(sorted(missing)) or 'another kind of update'}")
    inner = Budget(left, attack.config.iterations, budget.on_progress)
    inner.begin(budget._attack, observation)
    try:
        result = attack.reconstruct(observation, model, rng=rng.derive(name), device=device, budget=inner)
    except (AttackError, LinAlgError, torch.OutOfMemoryError) as error:
        return Trial(name, None, str(error))
    return Trial(name, result if result.images is not None else None, result.error or "")
