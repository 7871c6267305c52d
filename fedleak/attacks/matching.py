"""The one optimisation loop: descend on the distance between gradients, restart, and keep the lowest own loss."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.base import Attack, AttackConfig, Budget, Reconstruction
from fedleak.attacks.coordinates import Coordinates, PixelCoordinates
from fedleak.attacks.labels.base import JOINT, label_rules
from fedleak.attacks.victim import Victim
from fedleak.observation import InputSpec, Observation
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

_LOST = 10  # non-finite starts that are drawn anew before the attack gives up


class MatchingConfig(AttackConfig):
    """Parameters of the optimisation loop."""

    tolerance: float = Field(default=1e-9, ge=0, description="stop once the loss is this small: converged")
    patience: int | None = Field(default=50, ge=1, description="stop after so many iterations without progress: flat; or never")
    progress: float = Field(default=1e-3, gt=0, lt=1, description="relative fall of the best loss that counts as progress")


@dataclass
class Unknowns:
    """What the attacker guesses.

    Attributes
    ----------
    image : Tensor
        Variables (B, C, H, W) that stand for the images, optimised.
    coordinates : Coordinates
        Turns them into pixels.
    logits : Tensor, optional
        (B, K), optimised where the labels are unknown.
    labels : Tensor, optional
        (B,) of class indices, where a rule restored them.
    """

    image: Tensor
    coordinates: Coordinates
    logits: Tensor | None = None
    labels: Tensor | None = None

    @property
    def variables(self) -> list[Tensor]:
        """What the optimiser moves."""
        return [self.image] if self.logits is None else [self.image, self.logits]

    @property
    def pixels(self) -> Tensor:
        """The guessed images (B, C, H, W), meant for [0, 1] but not clamped."""
        return self.coordinates.decode(self.image)

    def targets(self, classes: int) -> Tensor:
        """Return the class probabilities (B, K) that the guess stands for."""
        if self.logits is not None:
            return self.logits.softmax(-1)
        assert self.labels is not None
        return functional.one_hot(self.labels, classes).to(self.image)


@dataclass
class Descent:
    """One start's course.

    Attributes
    ----------
    best : list of Tensor
        The variables at the lowest loss.
    loss, initial : float
        Lowest loss, and that of the start.
    iterations : int
        Spent.
    stop_reason : str
        ``"converged"``, ``"flat"``, ``"iterations"``, ``"budget"`` or ``"non-finite"``.
    """

    best: list[Tensor] = field(default_factory=list)
    loss: float = math.inf
    initial: float = math.inf
    iterations: int = 0
    stop_reason: str = "iterations"


def descend(
    loss_of: Callable[[], Tensor],
    variables: Sequence[Tensor],
    optimiser: torch.optim.Optimizer,
    config: MatchingConfig,
    budget: Budget,
    *,
    scale: float = 1.0,
    edit_gradient: Callable[[], None] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> Descent:
    """Minimise ``loss_of()`` over ``variables`` within the budget; keep the best point evaluated, by that loss.

    Parameters
    ----------
    loss_of : callable
        Returns the scalar loss at the variables' present values.
    variables : sequence of Tensor
        Leaves that require gradients; moved in place.
    optimiser : Optimizer
        Over ``variables``; it is stepped with a closure.
    scale : float
        The optimiser is given the loss times this; losses are reported without it.
    edit_gradient : callable, optional
        Changes the variables' gradients before each step (such as taking signs).
    after_step : callable, optional
        Given the number of the step just taken, projects the variables or changes learning rates.
    """
    course = Descent()
    marker, since = math.inf, 0  # the loss that the next progress is measured from, and how long ago it was reached

    def evaluate() -> Tensor:
        loss = loss_of()
        value = float(loss.detach())
        if value < course.loss:
            course.best, course.loss = [variable.detach().clone() for variable in variables], value
            course.initial = course.initial if math.isfinite(course.initial) else value
        return loss

    def closure() -> Tensor:
        # A line search evaluates many times in one step and must not outlive the budget, but there must be an iterate.
        if course.best and budget.exhausted:
            raise _BudgetSpent
        optimiser.zero_grad(set_to_none=True)
        loss = scale * evaluate()
        gradients = torch.autograd.grad(loss, list(variables))
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.grad = gradient
        if edit_gradient is not None:
            edit_gradient()
        return loss.detach()

    for iteration in range(config.iterations + 1):
        last = iteration == config.iterations
        try:
            loss = float(evaluate().detach()) if last else float(optimiser.step(closure)) / scale  # type: ignore[arg-type]
        except _BudgetSpent:
            course.stop_reason = "budget"
            break
        if not math.isfinite(loss):
            course.stop_reason = "non-finite"
            break
        course.iterations += not last
        since = 0 if course.loss < (1 - config.progress) * marker else since + 1
        marker = course.loss if since == 0 else marker
        budget.tick(iteration, loss)
        if reason := _reason(course.loss, since, budget, config):
            course.stop_reason = reason
            break
        if not last and after_step is not None:
            after_step(iteration)
    return course


class _BudgetSpent(Exception):
    """Leaves an optimiser's step in the middle."""


def _reason(loss: float, since: int, budget: Budget, config: MatchingConfig) -> str | None:
    if loss <= config.tolerance:
        return "converged"
    if config.patience is not None and since >= config.patience:
        return "flat"
    return "budget" if budget.exhausted else None


class MatchingAttack(Attack):
    """An attack by gradient matching; subclasses say what they minimise and how.

    A subclass gives a ``distance`` between gradients and an ``optimiser``; it may add a ``prior`` on the pixels, choose
    where to start, and restore labels first by default.
    """

    requires: ClassVar[frozenset[Knowledge]] = frozenset({Knowledge.LOCAL_TRAINING})
    Config: ClassVar[type[AttackConfig]] = MatchingConfig
    config: MatchingConfig
    default_labels: ClassVar[str | None] = None
    """Label rule where the configuration names none; ``None`` optimises soft labels jointly."""
    joint_labels: ClassVar[bool] = True
    precision: ClassVar[torch.dtype] = torch.float32
    """In which the loss is computed."""
    loss_scale: ClassVar[float] = 1.0
    """The optimiser is given the loss times this; PyTorch's L-BFGS forgets steps that change the loss by less than 1e-10."""

    def victim(self, observation: Observation, model: nn.Module, device: torch.device) -> Victim:
        """Return the network and the gradient to match: those of ``observation`` by default."""
        return Victim(model, observation, device, self.precision)

    @abstractmethod
    def distance(self, guessed: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
        """Return how far the guessed batch's gradient is from the observed one, scalar."""

    @abstractmethod
    def optimiser(self, variables: list[Tensor]) -> torch.optim.Optimizer:
        """Return the optimiser over the unknowns."""

    def prior(self, images: Tensor) -> Tensor:
        """Return a penalty on pixels (B, C, H, W), meant for [0, 1], scalar; none by default."""
        return images.new_zeros(())

    def coordinates(self, input: InputSpec, like: Tensor) -> Coordinates:
        """Return what the variables stand for: model inputs by default."""
        return PixelCoordinates(input)

    def start(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return the first variables (B, C, H, W): standard normal by default."""
        return torch.randn(shape, generator=generator)

    def edit_gradient(self, variables: list[Tensor]) -> None:
        """Change the unknowns' gradients before a step; not by default."""

    def after_step(self, step: int, optimiser: torch.optim.Optimizer, unknowns: Unknowns) -> None:
        """Project the unknowns or change learning rates after step number ``step``; not by default."""

    def minimise(self, victim: Victim, unknowns: Unknowns, seed: Seed, budget: Budget) -> Descent:
        """Descend from one start, whose other draws derive from ``seed``; by default on distance plus prior."""
        optimiser = self.optimiser(unknowns.variables)
        classes = victim.input.num_classes

        def loss_of() -> Tensor:
            pixels = unknowns.pixels
            guessed = victim.gradient(victim.input.normalize(pixels), unknowns.targets(classes))
            return self.distance(guessed, victim.observed) + self.prior(pixels)

        return descend(
            loss_of,
            unknowns.variables,
            optimiser,
            self.config,
            budget,
            scale=self.loss_scale,
            edit_gradient=lambda: self.edit_gradient(unknowns.variables),
            after_step=lambda step: self.after_step(step, optimiser, unknowns),
        )

    def reconstruct(
        self, observation: Observation, model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> Reconstruction:
        """Descend from each start in turn; stop early once one has converged."""
        victim = self.victim(observation, model, device)
        labels = self.restore_labels(observation, model)
        kept: tuple[Descent, Unknowns] | None = None
        iterations, lost, restart = 0, 0, 0
        while restart < self.config.restarts and lost <= _LOST:
            seed = rng.derive("restart", restart, lost)
            unknowns = self._unknowns(observation, labels, seed, device)
            course = self.minimise(victim, unknowns, seed, budget)
            iterations += course.iterations
            if course.stop_reason == "non-finite" and not budget.exhausted:
                lost += 1
            else:
                restart += 1
            if course.best and (kept is None or course.loss < kept[0].loss):
                kept = course, unknowns
            if kept is not None and (kept[0].stop_reason == "converged" or budget.exhausted):
                break
        if kept is None:
            return Reconstruction(None, iterations=iterations, stop_reason="failed", error="every start became non-finite")
        return self._result(*kept, iterations, budget.exhausted, lost)

    def restore_labels(self, observation: Observation, model: nn.Module) -> tuple[int, ...] | None:
        """Return the labels by the configured or default rule, or ``None`` to optimise them jointly."""
        rule = self.config.labels or self.default_labels
        return label_rules.get(rule)().restore(observation, model) if rule and rule != JOINT else None

    def _unknowns(self, observation: Observation, labels: tuple[int, ...] | None, seed: Seed, device: torch.device) -> Unknowns:
        generator = seed.generator()
        count, spec = observation.batch_size, observation.input
        image = self.start((count, *spec.shape), generator).to(device, self.precision).requires_grad_()
        coordinates = self.coordinates(spec, image)
        if labels is not None:
            return Unknowns(image, coordinates, labels=torch.tensor(labels, device=device))
        logits = torch.randn(count, spec.num_classes, generator=generator).to(device, self.precision).requires_grad_()
        return Unknowns(image, coordinates, logits=logits)

    def _result(self, course: Descent, unknowns: Unknowns, iterations: int, exhausted: bool, lost: int) -> Reconstruction:
        images = unknowns.coordinates.decode(course.best[0]).float().cpu()
        labels = unknowns.labels if unknowns.labels is not None else course.best[1].argmax(-1)
        return Reconstruction(
            images,
            labels=tuple(labels.tolist()),
            loss=course.loss,
            initial_loss=course.initial,
            iterations=iterations,
            stop_reason="budget" if exhausted and course.stop_reason != "converged" else course.stop_reason,
            flags=("non-finite-restart",) if lost else (),
        )
