"""Exact: chooses among the attacks that can be exact by what they need, and keeps the one whose gradient fits best.

Formula: the first of analytic, closed-form, spear whose relative misfit |grad(x) - g| / |g| is that of rounding; otherwise the
one of least misfit, cocktail-party included.
Source: fedleak; each attack names its own. That the misfit tells a right solution is R-GAP's check (arXiv 2010.07733).
For: where linear algebra suffices: feed-forward networks, one image or a small batch
Limits: leaves each attack a part of the budget only, and so misses batches that one of them alone has (one of three at B = 16,
tests/benchmarks/linear_first_layer.py)
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from fedleak.attacks.base import Attack, Budget, Reconstruction, attacks
from fedleak.attacks.exact.count import count
from fedleak.attacks.exact.trials import Trial, attempt
from fedleak.errors import AttackError
from fedleak.observation import Observation
from fedleak.seeding import Seed

ORDER = ("analytic", "closed-form", "spear", "cocktail-party")
"""What is tried, the cheapest and surest first."""
SOLVED = 1e-4
"""Relative misfit of the gradient up to which a solution counts as exact: rounding, amplified by the layers' conditions."""


@attacks.register
class Exact(Attack):
    """Exact where linear algebra suffices; ``method`` says which attack gave the result and how well its gradient fits."""

    name: ClassVar[str] = "exact"
    exact: ClassVar[bool] = True
    own_labels: ClassVar[bool] = True

    def reconstruct(
        self, observation: Observation, model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> Reconstruction:
        """Try the attacks in turn until the gradient of one fits."""
        whole = count(model, observation.input, observation.batch_size)[-1]
        tried: list[Trial] = []
        for name in ORDER:
            if name not in attacks.names() or (tried and budget.exhausted):
                continue
            trial = attempt(name, observation, model, rng=rng, device=device, budget=budget, labels=self.config.labels)
            tried.append(trial)
            # Weights after several steps have no one gradient to compare; there the rank alone says that there is one image.
            certain = trial.loss <= SOLVED or (name == "analytic" and observation.kind == "weights")
            if trial.result is not None and not trial.result.flags and certain:
                tried = [trial]
                break
        rebuilt = [trial for trial in tried if trial.result is not None]
        if not rebuilt:
            raise AttackError("no exact attack applies: " + "; ".join(f"{trial.name}: {trial.error}" for trial in tried))
        best = min(rebuilt, key=lambda trial: trial.loss)
        assert best.result is not None
        flags = best.result.flags
        if whole.slack < 0 and "not-identifiable" not in flags:
            flags = (*flags, "not-identifiable")
        said = f"{best.name}: {best.fit}; {whole.equations:,} equations for {whole.unknowns:,} unknowns"
        return replace(best.result, flags=flags, method=said)
