"""Auto: look at the network, the update and the knowledge granted, and run what is best for them, with a fallback in order.

Formula: exact where the equations can suffice, the closed form where patches have positions; unrolled, then natural, for
several local steps; natural for smooth networks; mmse for networks with ReLU; Inverting Gradients last; adaptive, and nothing
else, where defenses are known to be on
Source: fedleak's own; the order is that of what was measured for each attack
For: any network and any batch
Limits: goes on to the next attack only where one fails or leaves a misfit, as nobody tells it how good an image is: behind five
epochs at a rate of 0.001 its first choice ends 3.7 dB above the mean image, where natural has 18.5
(scenarios/claims/training-regime.toml)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from fedleak.attacks.base import Attack, Budget, Reconstruction, attacks
from fedleak.attacks.exact.chain import check_chain
from fedleak.attacks.exact.count import LayerCount, count_update
from fedleak.attacks.exact.positions import find_positions
from fedleak.attacks.matching.objectives import squared_distance
from fedleak.attacks.victims.base import Victim
from fedleak.errors import AttackError
from fedleak.modalities.image import InputSpec
from fedleak.models.inspect import ExecutionOrder, execution_order, last_linear
from fedleak.observation import LocalTraining, Observation, UpdateKind
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

_KINKED = (nn.ReLU, nn.LeakyReLU, nn.MaxPool2d)
_SMOOTH = (nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus)
_SOLVED = 1e-3
"""Misfit of the gradient, relative to its norm, up to which a closed form counts as the solution."""


@dataclass(frozen=True)
class Step:
    """One attack to run, and why, in words."""

    attack: str
    reason: str
    base: str | None = None
    sure: bool = False
    """Whether its own equations say if it has the image, so that its gradient need not be compared."""

    def __str__(self) -> str:
        return f"{self.attack}: {self.reason}"


def plan(model: nn.Module, input: InputSpec, local: LocalTraining, kind: UpdateKind, defenses: Sequence[str] = ()) -> list[Step]:
    """Return what to run, best first; each is for where those before it fail.

    Parameters
    ----------
    model : Module
        Of the clients' architecture.
    input : InputSpec
        What it takes.
    local : LocalTraining
        How the client trained.
    kind : {"gradient", "weights"}
        What it sent.
    defenses : sequence of str
        Which the attacker knows to be on.
    """
    if defenses:
        smooth, seen = _smoothness(model)
        base, through = "natural" if smooth else "inverting-gradients", ", ".join(defenses)
        return [Step("adaptive", f"{base} through {through}, known to be on; {seen}", base)]
    order = execution_order(model, input)
    whole = count_update(model, input, local)[-1]
    steps = local.steps if kind == "weights" else 1
    images = "one image" if local.num_examples == 1 else f"{local.num_examples} images"
    wanted: list[Step] = []
    if local.num_examples == 1 and (patches := find_positions(model, input)) is not None:
        wanted.append(Step("closed-form", f"one image, whose patches '{patches.positions}' gives away", sure=True))
    elif why := _exactly(order, whole, local, steps):
        wanted += [Step("exact", why), Step("closed-form", why)]
    smooth, seen = _smoothness(model)
    if steps > 1:
        several = f"{steps} local steps, taken one after another"
        wanted += [Step("unrolled", several), Step("natural", f"{steps} local steps, as one gradient and their drift")]
    elif smooth:
        wanted.append(Step("natural", f"smooth activations ({seen}), {images}, {_sufficiency(whole)}"))
    else:
        wanted.append(Step("mmse", f"{seen}, whose matching loss misleads descent, {images}, {_sufficiency(whole)}"))
    wanted.append(Step("inverting-gradients", "reads any network"))
    known, found = set(attacks.names()), list[Step]()
    for step in wanted:
        if step.attack in known and not (step.attack == "closed-form" and not step.sure and "exact" in known):
            found.append(step)
    return found


def _exactly(order: ExecutionOrder, whole: LayerCount, local: LocalTraining, steps: int) -> str | None:
    """Return why an exact solution is worth trying, or ``None``."""
    if whole.slack < 0 or (steps > 1 and local.num_examples > 1):
        return None
    try:
        check_chain(order, training=local.mode == "train")
    except AttackError:
        return None
    return f"a chain of layers that can be solved, {_sufficiency(whole)}"


def _sufficiency(whole: LayerCount) -> str:
    word = "suffice" if whole.slack >= 0 else "fall short"
    return f"equations {word} ({whole.equations:,} for {whole.unknowns:,} unknowns)"


def _smoothness(model: nn.Module) -> tuple[bool, str]:
    """Say whether all activations that can be seen are smooth, and which they are."""
    kinked = sorted({type(module).__name__ for module in model.modules() if isinstance(module, _KINKED)})
    smooth = sorted({type(module).__name__ for module in model.modules() if isinstance(module, _SMOOTH)})
    if kinked:
        return False, ", ".join(kinked)
    return (True, ", ".join(smooth)) if smooth else (False, "no smooth activation to be seen")


@attacks.register
class Auto(Attack):
    """Runs the attack that suits the case, says which and why, and turns to the next where it fails."""

    name: ClassVar[str] = "auto"
    requires: ClassVar[frozenset[Knowledge]] = frozenset({Knowledge.LOCAL_TRAINING})
    reads: ClassVar[Literal["all", "some", "alone"]] = "some"
    models_local_steps: ClassVar[bool] = True

    def foresee(
        self, model: nn.Module, input: InputSpec, local: LocalTraining, kind: UpdateKind, defenses: Sequence[str]
    ) -> str | None:
        """Return its plan."""
        return "; if that fails, ".join(str(step) for step in plan(model, input, local, kind, defenses))

    def reconstruct(
        self, observation: Observation, model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> Reconstruction:
        """Follow the plan until an attack succeeds; what is left of the budget goes to the next."""
        assert observation.local is not None
        kept: Reconstruction | None = None
        failures, iterations = [], 0
        defenses = [str(defense["name"]) for defense in observation.defenses or ()]
        for step in plan(model, observation.input, observation.local, observation.kind, defenses):
            if kept is not None and budget.exhausted:
                break
            plugin = attacks.get(step.attack)
            attack = plugin(**self._parameters(plugin, step, observation, model))
            others = [name for name, _ in model.named_parameters() if name not in observation.parameters]
            if (reason := attack.refuses_part(others, observation.kept_known)) is not None:
                failures.append(reason)
                continue
            try:
                result = attack.reconstruct(
                    observation, model, rng=rng.derive(step.attack), device=device, budget=self._rest(budget, attack, observation)
                )
            except (AttackError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
                failures.append(f"{step.attack} failed: {error}")
                continue
            iterations += result.iterations
            if result.images is None:
                failures.append(f"{step.attack} failed: {result.error}")
                continue
            result = replace(result, method="; ".join(part for part in (str(step), result.method, *failures) if part))
            if kept is None and (not plugin.exact or _solved(result) or (step.sure and not result.flags)):
                return replace(result, iterations=iterations)
            if kept is not None:
                best = min(kept, result, key=lambda found: _misfit(found, observation, model, device))
                return replace(best, iterations=iterations)
            kept = result
            failures.append(f"{step.attack} left a misfit of {_misfit(result, observation, model, device):.1e}")
        if kept is None:
            raise AttackError("; ".join(failures))
        return replace(kept, iterations=iterations)

    def _parameters(self, plugin: type[Attack], step: Step, observation: Observation, model: nn.Module) -> dict[str, Any]:
        given = self.config.model_dump(include=self.config.model_fields_set - {"budget_seconds"})
        if "labels" not in given and (observation.labels is not None or not plugin.own_labels):
            given["labels"] = _label_rule(observation, model)
        if step.base is not None:
            given["base"] = step.base
        return {key: value for key, value in given.items() if value is not None}

    def _rest(self, budget: Budget, attack: Attack, observation: Observation) -> Budget:
        left = None if budget.seconds is None else max(budget.seconds - budget.spent, 1e-9)
        rest = Budget(left, attack.config.iterations, budget.on_progress)
        rest.begin(self.name, observation)
        return rest


def _label_rule(observation: Observation, model: nn.Module) -> str | None:
    """Return the label rule that reads most from this update; ``None`` leaves it to the attack."""
    if observation.labels is not None:
        return "given"
    found = last_linear(model, observation.input)
    if found is None:
        return None
    if observation.batch_size == 1:
        return "idlg"
    return "consistent" if found[1].bias is not None else "zero-shot"


def _solved(result: Reconstruction) -> bool:
    return result.loss is not None and result.loss <= _SOLVED and "not-identifiable" not in result.flags


def _misfit(result: Reconstruction, observation: Observation, model: nn.Module, device: torch.device) -> float:
    """Return how far the gradient of a result's images is from the observed one, relative to its norm: attacks' losses differ."""
    if result.images is None or result.labels is None:
        return math.inf
    victim = Victim(model, observation, device)
    inputs = observation.input.normalize(result.images.to(device))
    targets = nn.functional.one_hot(torch.tensor(result.labels, device=device), observation.input.num_classes).to(inputs)
    found = [value.detach() for value in victim.gradient(inputs, targets)]
    return math.sqrt(float(squared_distance(found, victim.observed)))
