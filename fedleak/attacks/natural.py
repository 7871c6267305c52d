"""Natural: L-BFGS in the frequencies of opponent colours, on whitened gradients, with a natural image's prior let go slowly.

Formula: u = argmin mean_k ((grad_k L(f(x), y) - g_k) / s_k)^2 + lambda |u|^2 / n + box * mean max(-x, x - 1, 0)^2, x = decode(u),
s_k the standard deviation of gradient entry k over synthetic natural batches of the same labels, lambda falling in stages
Source: fedleak's own; coordinates as in attacks.images.coordinates, box and labels as in Inverting Gradients (arXiv 2003.14053)
For: smooth networks, batches, and FedAvg with little drift
Limits: on ReLU networks it stays near the mean image, as all gradient matching does; four steps at a rate of 0.01 drift so far
that 14.9 dB are left, where unrolled has 30.4 (tests/benchmarks/local_steps.py)

A FedAvg update is matched as the mean gradient at the mean of the points where its steps were taken; after each stage the
drift between the steps is estimated from the images found so far (fedleak.attacks.victims.mean_point).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedleak.attacks.base import JOINT, AttackConfig, Budget, attacks
from fedleak.attacks.images.coordinates import Coordinates, FrequencyCoordinates
from fedleak.attacks.labels.base import label_rules
from fedleak.attacks.matching.base import Descent, Guess, MatchingAttack, MatchingConfig, Try
from fedleak.attacks.matching.whitening import whitening
from fedleak.attacks.victims.base import Victim
from fedleak.attacks.victims.mean_point import LocalVictim, Order
from fedleak.modalities.image import InputSpec
from fedleak.observation import Observation


class NaturalConfig(MatchingConfig):
    """Parameters, chosen on few images of CIFAR-10 and LeNet."""

    iterations: int = Field(default=100, ge=1, description="optimiser iterations for each start, over all stages")
    start: float = Field(default=0.1, gt=0, description="standard deviation of the first frequencies")
    samples: int = Field(default=12, ge=2, description="synthetic batches that tell how much each gradient entry varies")
    floor: float = Field(default=0.03, gt=0, description="added to each entry's variance, in units of its tensor's mean variance")
    penalty: float = Field(default=1e-3, gt=0, description="weight lambda of the natural image's prior in the first stage")
    penalty_end: float = Field(default=1e-6, gt=0, description="and in the last")
    stages: int = Field(
        default=4, ge=1, le=1000, description="equal parts of the budget, lambda falling geometrically between them"
    )
    local_stages: int = Field(default=12, ge=1, le=1000, description="the same for an update of several local steps")
    box: float = Field(default=16.0, ge=0, description="weight of the soft box [0, 1]")
    history: int = Field(default=100, ge=1, description="steps that L-BFGS remembers")
    inner: int = Field(default=20, ge=1, description="L-BFGS steps in one iteration")
    tolerance: float = Field(default=1e-10, ge=0, description="stop once the loss is this small: converged")
    patience: int = Field(default=5, ge=1, description="leave a stage after so many iterations without progress")


@attacks.register
class Natural(MatchingAttack):
    """fedleak's own gradient matching, for smooth networks."""

    name: ClassVar[str] = "natural"
    models_local_steps: ClassVar[bool] = True
    Config: ClassVar[type[AttackConfig]] = NaturalConfig
    config: NaturalConfig
    precision: ClassVar[torch.dtype] = torch.float32
    loss_scale: ClassVar[float] = 1e3

    def victim(self, observation: Observation, model: nn.Module, device: torch.device) -> Victim:
        """Return the network at the sent parameters, or those where a FedAvg client was on average."""
        local = observation.local
        if observation.kind == "gradient" or local is None or local.steps == 1 or local.path is None:
            victim = super().victim(observation, model, device)
        else:
            victim = LocalVictim(model, observation, device, self.precision)
        victim.weighs_noise = True
        return victim

    def restore_labels(self, observation: Observation, model: nn.Module) -> tuple[int, ...] | None:
        """Return the labels by the configured rule; by default those granted, or else by ``bias-corrected``."""
        rule = self.config.labels or ("bias-corrected" if observation.labels is None else "given")
        return None if rule == JOINT else label_rules.get(rule)().restore(observation, model)

    def coordinates(self, input: InputSpec, like: Tensor) -> Coordinates:
        """Return frequencies of opponent colours."""
        return FrequencyCoordinates(input, like)

    def start(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return nearly flat grey images."""
        return self.config.start * torch.randn(shape, generator=generator)

    def distance(self, guessed: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return the mean squared difference of whitened gradients."""
        total = torch.stack([(a - b).square().sum() for a, b in zip(guessed, observed, strict=True)]).sum()
        return total / sum(value.numel() for value in observed)

    def prior(self, images: Tensor) -> Tensor:
        """Return the penalty for leaving [0, 1]."""
        return self.config.box * ((images - 1).relu() + (-images).relu()).square().mean()

    def optimiser(self, variables: list[Tensor]) -> torch.optim.Optimizer:
        """Return L-BFGS with a strong-Wolfe line search."""
        return torch.optim.LBFGS(
            variables,
            lr=1.0,
            max_iter=self.config.inner,
            history_size=self.config.history,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

    def loss(self, guess: Guess) -> Tensor:
        """Return the distance of whitened gradients, the box, and the natural image's prior, which :meth:`minimise` weighs."""
        *weights, penalty = guess.data
        distance = self.distance(_product(weights, guess.gradient), _product(weights, guess.observed))
        return distance + self.prior(guess.pixels) + penalty * guess.image.square().mean() + guess.victim.penalty()

    def minimise(self, tries: Sequence[Try], clock: Budget) -> list[Descent]:
        """Descend once for each stage, each from the best point of the one before; keep an order of local steps that pays."""
        working = staged = [_Staged(self.config, one) for one in tries]
        config, begun = self.config, clock.spent
        first, last = math.log(config.penalty), math.log(config.penalty_end)
        penalties = torch.linspace(first, last, config.local_stages if staged[0].local else config.stages).exp().tolist()
        for stage, penalty in enumerate(penalties):
            share = (stage + 1) / len(penalties)
            for one in working:
                if stage:
                    one.retrace(4 * stage <= 3 * len(penalties), clock)
            parts = self.descend(
                [one.at(stage == len(penalties) - 1) for one in working],
                replace(clock, seconds=None if clock.seconds is None else begun + share * (clock.seconds - begun)),
                [one.data(penalty) for one in working],
                observed=[one.observed for one in working],
                iterations=[round(share * config.iterations) - one.course.iterations for one in working],
            )
            for one, part in zip(working, parts, strict=True):
                one.take(part, stage == 0)
            working = [one for one in working if one.course.best]
            if not working:
                break
        return [one.course for one in staged]


class _Staged:
    """One start on its way through the stages: its whitening, its course, and the drift between its local steps, if any."""

    def __init__(self, config: NaturalConfig, one: Try) -> None:
        self._one, victim = one, one.victim
        targets = one.unknowns.targets(victim.input.num_classes).detach()
        self._weights = whitening(victim, targets, config.samples, config.floor, one.seed.derive("whitening"))
        self._noise = victim.noise()
        self.observed: Sequence[Tensor] = victim.observed
        self.course = Descent()
        # What the counters know is of the whole update, not of the single steps that drift is retraced by.
        self.local = victim if isinstance(victim, LocalVictim) and not victim.counters else None
        self._kept = self._drift = self.local.no_drift(one.seed.derive("order").generator()) if self.local else None
        self._tried = set[Order]()

    def retrace(self, search: bool, clock: Budget) -> None:
        """Correct what is observed by the drift that the images found so far tell of; ``search`` for another order too."""
        if not self.local or not self._kept:
            return
        unknowns, victim = self._one.unknowns, self._one.victim
        guess = victim.input.normalize(unknowns.pixels.detach()), unknowns.targets(victim.input.num_classes).detach()
        self._drift = self.local.drift(guess, self._weights, self._kept, self._tried, search, clock)
        self.observed = [value - moved for value, moved in zip(victim.observed, self._drift.values, strict=True)]
        self._tried.add(self._drift.order)

    def at(self, last: bool) -> Try:
        """Return the start of the next stage; only in the last one can an earlier restart make it needless."""
        self._one.course = Descent()
        told = replace(self._one.budget, done=self.course.iterations)
        return replace(self._one, budget=told, earlier=self._one.earlier if last else [])

    def data(self, penalty: float) -> list[Tensor]:
        """Return a stage's weights and penalty."""
        image = self._one.unknowns.image
        weights, pull = _at_noise(self._weights, self._noise, penalty, image.numel())
        return [*weights, torch.tensor(pull).to(image)]

    def take(self, part: Descent, first: bool) -> None:
        """Go on from where a stage has ended, unless another order of the steps did not pay."""
        course = self.course
        course.initial = part.initial if first else course.initial
        course.iterations += part.iterations
        course.stop_reason = part.stop_reason
        changed = len(self._tried) > 1 and self._drift and self._kept and self._drift.order != self._kept.order
        if part.loss < course.loss or not changed:
            course.best, course.loss, self._kept = part.best, part.loss, self._drift
        with torch.no_grad():
            for variable, best in zip(self._one.unknowns.variables, course.best or self._one.unknowns.variables, strict=True):
                variable.copy_(best)


def _at_noise(
    weights: Sequence[Tensor], noise: Sequence[Tensor] | None, penalty: float, unknowns: int
) -> tuple[Sequence[Tensor], float]:
    """Return a stage's weights and penalty where the update is noisy: its likelihood, and a prior that stays at that level.

    Without noise a stage trusts entry k to the variance ``a s_k^2``, where ``penalty = a unknowns / entries``: against a standard
    normal prior, and all multiplied by a. Noise adds to this variance. So that the loss stays of order one as a falls, it is
    then multiplied by a and the least noise r, in units of ``s_k^2``.
    """
    if noise is None:
        return weights, penalty
    entries = sum(value.numel() for value in weights)
    relative = [weight.square() * variance for weight, variance in zip(weights, noise, strict=True)]
    least = min(float(r[w > 0].min()) for r, w in zip(relative, weights, strict=True) if (w > 0).any())
    trust = penalty * entries / unknowns
    scaled = [weight * ((trust + least) / (trust + r)).sqrt() for weight, r in zip(weights, relative, strict=True)]
    return scaled, penalty + least * unknowns / entries


def _product(weights: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
    return [weight * value for weight, value in zip(weights, values, strict=True)]
