"""Auto: looks at the network, the update and the count of equations, says what fits, and falls back in order.

Formula: exact where the equations suffice in each layer; natural for smooth activations; mmse for ReLU; unrolled for several
local steps; inverting-gradients at the end. The first whose own loss is good is kept, otherwise the last that gave images.
Source: fedleak; the order is that of its benchmarks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import nn

from fedleak.attacks.base import Attack, Budget, Reconstruction, attacks
from fedleak.attacks.exact.count import count, weakest
from fedleak.attacks.exact.trials import attempt
from fedleak.attacks.exact_choice import SOLVED
from fedleak.errors import AttackError
from fedleak.models.inspect import last_linear
from fedleak.observation import InputSpec, LocalTraining, Observation, UpdateKind
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

_SMOOTH = (nn.Sigmoid, nn.Tanh, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus)


@dataclass(frozen=True)
class Plan:
    """What ``auto`` runs, in order, and why.

    Attributes
    ----------
    names : tuple of str
        Attacks that are installed.
    reason : str
        In words.
    """

    names: tuple[str, ...]
    reason: str


def plan(model: nn.Module, input: InputSpec, kind: UpdateKind, local: LocalTraining | None) -> Plan:
    """Return which attacks fit.

    Parameters
    ----------
    model : Module
        Of the architecture that the clients train.
    input : InputSpec
        What it takes.
    kind : {"gradient", "weights"}
        Of the update.
    local : LocalTraining or None
        As far as it is granted.
    """
    images = local.num_examples if local is not None else 1
    steps = local.steps if local is not None and kind == "weights" else 1
    counts = count(model, input, images)
    scarce = weakest(counts)
    activations = sorted({type(module).__name__ for module in model.modules() if isinstance(module, _SMOOTH)})
    sharp = any(isinstance(module, nn.ReLU) for module in model.modules())
    suffices = len(counts) > 1 and scarce.slack >= 0
    # A first layer that is linear on the image can be exact though a later layer falls short.
    linear = len(counts) > 1 and counts[0].kind == "Linear" and counts[-1].slack >= 0
    facts = [f"{images:,} image{'' if images == 1 else 's'}"]
    wanted: list[str] = []
    if steps > 1:
        facts.append(f"{steps} local steps")
        wanted += ["exact"] if images == 1 and (suffices or linear) else []
        wanted += ["natural", "unrolled"] if activations and not sharp else ["unrolled", "natural"]
    else:
        wanted += ["exact"] if suffices or linear else []
        wanted += ["natural"] if activations and not sharp else ["mmse"]
    facts.append(f"smooth activations ({', '.join(activations)})" if activations and not sharp else "activations with kinks")
    if suffices or linear:
        facts.append(f"equations suffice ({counts[-1].equations:,} for {counts[-1].unknowns:,})")
    else:
        facts.append(f"equations fall short ({scarce.equations:,} of {scarce.unknowns:,} in {scarce.layer})")
    installed = attacks.names()
    names = tuple(name for name in dict.fromkeys([*wanted, "inverting-gradients"]) if name in installed)
    return Plan(names, ", ".join(facts))


@attacks.register
class Auto(Attack):
    """Runs what fits best; ``method`` says which attack gave the result and why it was chosen."""

    name: ClassVar[str] = "auto"
    requires: ClassVar[frozenset[Knowledge]] = frozenset({Knowledge.LOCAL_TRAINING})
    models_local_steps: ClassVar[bool] = True

    def reconstruct(
        self, observation: Observation, model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> Reconstruction:
        """Run the attacks of the plan until one succeeds by its own loss."""
        planned = plan(model, observation.input, observation.kind, observation.local)
        labels = self.config.labels or _label_rule(observation, model)
        limit = self.config.iterations if "iterations" in self.config.model_fields_set else None
        kept: Reconstruction | None = None
        failed: list[str] = []
        for name in planned.names:
            if kept is not None and budget.exhausted:
                break
            rule = self.config.labels if name == "exact" else labels
            trial = attempt(name, observation, model, rng=rng, device=device, budget=budget, labels=rule, iterations=limit)
            if trial.result is None:
                failed.append(f"{name} failed: {trial.error}")
                continue
            method = trial.result.method or name
            kept = replace(
                trial.result, method=f"{method}: {planned.reason}" if method == name else f"{method}; {planned.reason}"
            )
            if _good(name, trial.result, trial.loss):
                break
            failed.append(f"{name} left its own loss at {trial.loss:.1e}")
        if kept is None:
            raise AttackError("no attack succeeded: " + "; ".join(failed))
        return replace(kept, method="; ".join([kept.method, *failed[:2]]))


def _good(name: str, result: Reconstruction, loss: float) -> bool:
    """Say whether an attack's own loss speaks for its result."""
    if name == "exact":
        return not result.flags and (loss <= SOLVED or loss == float("inf"))
    return result.initial_loss is None or loss < 0.5 * result.initial_loss


def _label_rule(observation: Observation, model: nn.Module) -> str:
    """Return the rule that reads most: the labels granted, the classifier's bias, or else its weights."""
    if observation.labels is not None:
        return "given"
    classifier = last_linear(model, observation.input)
    if classifier is not None and classifier[1].bias is not None:
        return "consistent"
    return "idlg" if observation.batch_size == 1 else "zero-shot"
