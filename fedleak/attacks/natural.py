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
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import vmap

from fedleak.attacks.base import JOINT, AttackConfig, Budget, attacks
from fedleak.attacks.images.coordinates import Coordinates, FrequencyCoordinates
from fedleak.attacks.labels.base import label_rules
from fedleak.attacks.matching.base import Descent, MatchingAttack, MatchingConfig, descend
from fedleak.attacks.matching.rounds import Try
from fedleak.attacks.matching.unknowns import Unknowns
from fedleak.attacks.matching.whitening import whitening
from fedleak.attacks.victims.base import Victim
from fedleak.attacks.victims.mean_point import LocalVictim, Order
from fedleak.modalities.image import InputSpec
from fedleak.observation import Observation
from fedleak.seeding import Seed


class NaturalConfig(MatchingConfig):
    """Parameters, chosen on few images of CIFAR-10 and LeNet."""

    iterations: int = Field(default=100, ge=1, description="optimiser iterations for each start, over all stages")
    start: float = Field(default=0.1, gt=0, description="standard deviation of the first frequencies")
    samples: int = Field(default=12, ge=2, description="synthetic batches that tell how much each gradient entry varies")
    floor: float = Field(default=0.03, gt=0, description="added to each entry's variance, in units of its tensor's mean variance")
    penalty: float = Field(default=1e-3, gt=0, description="weight lambda of the natural image's prior in the first stage")
    penalty_end: float = Field(default=1e-6, gt=0, description="and in the last")
    stages: int = Field(default=4, ge=1, description="equal parts of the budget, lambda falling geometrically between them")
    local_stages: int = Field(default=12, ge=1, description="the same for an update of several local steps")
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
        if observation.kind == "gradient" or observation.local is None or observation.local.steps == 1:
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

    def minimise(self, victim: Victim, unknowns: Unknowns, seed: Seed, budget: Budget) -> Descent:
        """Descend once for each stage, each from the best point of the one before; keep an order of local steps that pays."""
        weights = whitening(
            victim, self._targets(victim, unknowns), self.config.samples, self.config.floor, seed.derive("whitening")
        )
        # What the counters know is of the whole update, not of the single steps that drift is retraced by.
        local = victim if isinstance(victim, LocalVictim) and not victim.counters else None
        kept = drift = local.no_drift(seed.derive("order").generator()) if local else None
        course, begun, observed, tried = Descent(), budget.spent, victim.observed, set[Order]()
        penalties = self._penalties(self.config.local_stages if local else self.config.stages)
        noise = victim.noise()
        for stage, penalty in enumerate(penalties):
            if local and kept and stage:
                guess = victim.input.normalize(unknowns.pixels.detach()), self._targets(victim, unknowns)
                drift = local.drift(guess, weights, kept, tried, 4 * stage <= 3 * len(penalties), budget)
                observed = [value - moved for value, moved in zip(victim.observed, drift.values, strict=True)]
                tried.add(drift.order)
            share = (stage + 1) / len(penalties)
            trusted, pull = _at_noise(weights, noise, penalty, unknowns.image.numel())
            part = descend(
                partial(self._loss, victim, unknowns, trusted, observed, pull),
                unknowns.variables,
                self.optimiser(unknowns.variables),
                self.config.model_copy(update={"iterations": round(share * self.config.iterations) - course.iterations}),
                _part(budget, begun, share, course.iterations),
                scale=self.loss_scale,
            )
            course.initial = part.initial if stage == 0 else course.initial
            course.iterations += part.iterations
            course.stop_reason = part.stop_reason
            changed = len(tried) > 1 and drift and kept and drift.order != kept.order
            if part.loss < course.loss or not changed:
                course.best, course.loss, kept = part.best, part.loss, drift
            if not course.best:
                break
            with torch.no_grad():
                for variable, best in zip(unknowns.variables, course.best, strict=True):
                    variable.copy_(best)
        return course

    def gains(self, victim: Victim, observations: int) -> bool:
        """Whether gradients can go together, and are faster so; soft labels change the whitening, and go one by one."""
        return self.config.labels != JOINT and super().gains(victim, observations)

    def minimise_together(self, tries: Sequence[Try], clock: Budget) -> list[Descent]:
        """Do the stages of :meth:`minimise` for many gradients, in step."""
        loss_of, data = self._losses(tries)
        courses, begun, working = [Descent() for _ in tries], clock.spent, list(range(len(tries)))
        penalties = self._penalties(self.config.stages)
        for stage, penalty in enumerate(penalties):
            share = (stage + 1) / len(penalties)
            limits = [round(share * self.config.iterations) - courses[at].iterations for at in working]
            last = stage == len(penalties) - 1
            for at in working:
                tries[at].course = Descent()
            told = [
                replace(
                    tries[at],
                    budget=_part(tries[at].budget, 0.0, 1.0, courses[at].iterations),
                    earlier=tries[at].earlier if last else [],
                )
                for at in working
            ]
            parts = self.descend_together(
                told,
                partial(loss_of, penalty),
                [value[working] for value in data],
                _part(clock, begun, share, 0),
                limits,
            )
            for at, part in zip(working, parts, strict=True):
                course = courses[at]
                course.initial = part.initial if stage == 0 else course.initial
                course.iterations += part.iterations
                course.best, course.loss, course.stop_reason = part.best, part.loss, part.stop_reason
                if part.best:
                    with torch.no_grad():
                        tries[at].unknowns.image.copy_(part.best[0])
            working = [at for at in working if courses[at].best]
            if not working:
                break
        return courses

    def _losses(self, tries: Sequence[Try]) -> tuple[Callable[[float, list[Tensor], list[Tensor]], Tensor], list[Tensor]]:
        victim, coordinates = tries[0].victim, tries[0].unknowns.coordinates
        classes, count = victim.input.num_classes, len(victim.observed)
        weights = [
            whitening(
                one.victim, one.unknowns.targets(classes), self.config.samples, self.config.floor, one.seed.derive("whitening")
            )
            for one in tries
        ]
        stacked = [torch.stack(values) for values in zip(*weights, strict=True)]
        *observed, targets = self.data(tries)

        def loss_of(penalty: float, variables: list[Tensor], data: list[Tensor]) -> Tensor:
            weights, observed, targets = data[:count], data[count:-1], data[-1]
            pixels = vmap(coordinates.decode)(variables[0])
            guessed = victim.gradients(victim.input.normalize(pixels.flatten(0, 1)).view_as(pixels), targets)
            distance = vmap(self.distance)(_product(weights, guessed), observed)
            return distance + vmap(self.prior)(pixels) + penalty * variables[0].square().mean((1, 2, 3, 4))

        return loss_of, [*stacked, *_product(stacked, observed), targets]

    def _targets(self, victim: Victim, unknowns: Unknowns) -> Tensor:
        return unknowns.targets(victim.input.num_classes).detach()

    def _loss(
        self, victim: Victim, unknowns: Unknowns, weights: Sequence[Tensor], observed: Sequence[Tensor], penalty: float
    ) -> Tensor:
        pixels = unknowns.pixels
        guessed = victim.gradient(victim.input.normalize(pixels), unknowns.targets(victim.input.num_classes))
        guessed = victim.compared(guessed, observed)
        distance = self.distance(_product(weights, guessed), _product(weights, observed))
        return distance + self.prior(pixels) + penalty * unknowns.image.square().mean() + victim.penalty()

    def _penalties(self, stages: int) -> list[float]:
        first, last = math.log(self.config.penalty), math.log(self.config.penalty_end)
        return torch.linspace(first, last, stages).exp().tolist()


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


def _part(budget: Budget, begun: float, share: float, done: int) -> Budget:
    """Return the budget that ends at a share of what was left after ``begun`` seconds; it counts on from ``done`` iterations."""
    tell = budget.on_progress
    return replace(
        budget,
        seconds=None if budget.seconds is None else begun + share * (budget.seconds - begun),
        on_progress=None if tell is None else lambda at: tell(replace(at, iteration=at.iteration + done)),
    )
