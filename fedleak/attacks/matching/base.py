"""The one optimisation loop: descend on the distance between gradients, restart, and keep the lowest own loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import vmap

from fedleak.attacks.base import JOINT, Attack, AttackConfig, Budget, Reconstruction
from fedleak.attacks.images.coordinates import Coordinates, PixelCoordinates
from fedleak.attacks.labels.base import label_rules
from fedleak.attacks.matching.descent import Descent, MatchingConfig, descend
from fedleak.attacks.matching.rounds import LOST, Round, Try
from fedleak.attacks.matching.together import Loss, Start, descend_together, known
from fedleak.attacks.matching.unknowns import Unknowns
from fedleak.attacks.victims.base import Victim
from fedleak.modalities.image import InputSpec
from fedleak.observation import Observation
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

__all__ = ["Descent", "MatchingAttack", "MatchingConfig", "Unknowns", "descend"]


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
    spares_restarts: ClassVar[bool] = False
    """Whether a start mostly converges, so that the next is begun only where it has not."""
    loss_scale: ClassVar[float] = 1.0
    """The optimiser is given the loss times this; PyTorch's L-BFGS forgets steps that change the loss by less than 1e-10."""

    takes_counters: ClassVar[bool] = True
    """Whether its loss is made of the victim's ``gradient``, ``compared`` and ``penalty``: it can attack through a defense."""
    countered: Callable[[Observation, Victim], Victim] | None = None
    """What an attacker who knows the client's defenses makes of the victim; see :mod:`fedleak.attacks.adaptive`."""

    def victim(self, observation: Observation, model: nn.Module, device: torch.device) -> Victim:
        """Return the network and the gradient to match: those of ``observation`` by default."""
        return Victim(model, observation, device, self.precision)

    def defended(self, observation: Observation, model: nn.Module, device: torch.device) -> Victim:
        """Return :meth:`victim`, as far as the attacker knows its defenses."""
        victim = self.victim(observation, model, device)
        return victim if self.countered is None else self.countered(observation, victim)

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

    def when_flat(self, optimiser: torch.optim.Optimizer) -> bool:
        """Change the optimiser where its descent has become flat, and return true; by default return false, which ends it."""
        return False

    def minimise(self, victim: Victim, unknowns: Unknowns, seed: Seed, budget: Budget) -> Descent:
        """Descend from one start, whose other draws derive from ``seed``; by default on distance plus prior."""
        optimiser = self.optimiser(unknowns.variables)
        classes = victim.input.num_classes

        def loss_of() -> Tensor:
            pixels = unknowns.pixels
            guessed = victim.gradient(victim.input.normalize(pixels), unknowns.targets(classes))
            guessed = victim.compared(guessed, victim.observed)
            return self.distance(guessed, victim.observed) + self.prior(pixels) + victim.penalty()

        return descend(
            loss_of,
            unknowns.variables,
            optimiser,
            self.config,
            budget,
            scale=self.loss_scale,
            edit_gradient=lambda: self.edit_gradient(unknowns.variables),
            after_step=lambda step: self.after_step(step, optimiser, unknowns),
            when_flat=lambda: self.when_flat(optimiser),
        )

    def losses(self, tries: Sequence[Try]) -> tuple[Loss, list[Tensor]]:
        """Return what the starts minimise together, and its data, one row for each start; by default as :meth:`minimise`."""
        victim, unknowns = tries[0].victim, tries[0].unknowns
        tensors = len(victim.observed)

        def loss_of(variables: list[Tensor], data: list[Tensor]) -> Tensor:
            pixels = vmap(unknowns.coordinates.decode)(variables[0])
            targets = data[tensors] if len(variables) == 1 else variables[1].softmax(-1)
            guessed = victim.gradients(victim.input.normalize(pixels.flatten(0, 1)).view_as(pixels), targets)
            return vmap(self.distance)(guessed, data[:tensors]) + vmap(self.prior)(pixels)

        return loss_of, self.data(tries)

    def data(self, tries: Sequence[Try]) -> list[Tensor]:
        """Return the observed gradients (N, ...) by parameter, and the targets (N, B, K) where labels are known."""
        observed = [torch.stack(values) for values in zip(*(one.victim.observed for one in tries), strict=True)]
        if tries[0].unknowns.logits is not None:
            return observed
        return [*observed, torch.stack([one.unknowns.targets(one.victim.input.num_classes) for one in tries])]

    def minimise_together(self, tries: Sequence[Try], clock: Budget) -> list[Descent]:
        """Do what :meth:`minimise` does for many starts, in one tensor program; override both or neither."""
        return self.descend_together(tries, *self.losses(tries), clock, [self.config.iterations] * len(tries))

    def descend_together(
        self, tries: Sequence[Try], loss_of: Loss, data: list[Tensor], clock: Budget, iterations: Sequence[int]
    ) -> list[Descent]:
        """Descend from all starts with the attack's optimiser, hooks and scale; each at most so many iterations."""
        starts = []
        for one, limit in zip(tries, iterations, strict=True):
            optimiser = self.optimiser(one.unknowns.variables)
            start = Start(one.unknowns.variables, optimiser, one.budget, limit, ended=one.needless, course=one.course)
            start.when_flat = partial(self.when_flat, optimiser)
            if type(self).edit_gradient is not MatchingAttack.edit_gradient:
                start.edit_gradient = self.edit_gradient
            if type(self).after_step is not MatchingAttack.after_step:
                start.after_step = partial(self._after_step, optimiser, one.unknowns)
            starts.append(start)
        return descend_together(loss_of, starts, data, self.config, clock, scale=self.loss_scale)

    def _after_step(self, optimiser: torch.optim.Optimizer, unknowns: Unknowns, step: int, variables: list[Tensor]) -> None:
        unknowns.image, unknowns.logits = variables[0], variables[1] if len(variables) > 1 else None
        self.after_step(step, optimiser, unknowns)

    @property
    def takes_rounds(self) -> bool:
        """Whether a round is better handed over at once: where its starts go together, or the attack has a way of its own."""
        return type(self).run is not MatchingAttack.run or self._goes_together

    @property
    def _goes_together(self) -> bool:
        """Whether starts can go together, as far as the attack decides it."""
        own = type(self)
        for name in ("minimise", "reconstruct"):
            # A subclass that changes one of the two without the other means the one.
            one, many = (next(c for c in own.__mro__ if key in vars(c)) for key in (name, "minimise_together"))
            if not issubclass(many, one) and one is not MatchingAttack:
                return False
        return self.config.together != 1 and known(self.optimiser([torch.zeros(1, requires_grad=True)]))

    def gains(self, victim: Victim, observations: int) -> bool:
        """Whether this attack can take starts together, and is faster so."""
        return self._goes_together and type(victim) is Victim and not victim.counters

    def run(
        self, observations: Sequence[Observation], model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> list[Reconstruction]:
        """Take all observations and restarts together where that is faster, and one by one elsewhere."""

        def alone(observation: Observation) -> Reconstruction:
            return super(MatchingAttack, self).run([observation], model, rng=rng, device=device, budget=budget)[0]

        return Round(self, alone, model, rng, device, budget).run(observations)

    def reconstruct(
        self, observation: Observation, model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> Reconstruction:
        """Descend from each start in turn; stop early once one has converged."""
        victim = self.defended(observation, model, device)
        labels = self.restore_labels(observation, model)
        kept: tuple[Descent, Unknowns] | None = None
        iterations, lost, restart = 0, 0, 0
        while restart < self.config.restarts and lost <= LOST:
            seed = rng.derive("restart", restart, lost)
            unknowns = self._unknowns(observation, labels, seed, device)
            unknowns.others = victim.start(seed.derive("others").generator())
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
        result = self._result(*kept, iterations, budget.exhausted, lost)
        if not victim.counters or result.images is None:
            return result
        ended = kept[0].best[len(unknowns.variables) - len(unknowns.others) :]
        return replace(result, images=victim.restore(result.images, ended))

    def restore_labels(self, observation: Observation, model: nn.Module) -> tuple[int, ...] | None:
        """Return the labels by the configured or default rule, or ``None`` to optimise them jointly."""
        rule = self.config.labels or self.default_labels
        return label_rules.get(rule)().restore(observation, model) if rule and rule != JOINT else None

    def _unknowns(self, observation: Observation, labels: tuple[int, ...] | None, seed: Seed, device: torch.device) -> Unknowns:
        """Return the start that derives from ``seed``."""
        generator = seed.generator()
        count, spec = observation.batch_size, observation.input
        image = self.start((count, *spec.shape), generator).to(device, self.precision).requires_grad_()
        coordinates = self.coordinates(spec, image)
        if labels is not None:
            return Unknowns(image, coordinates, labels=torch.tensor(labels, device=device))
        logits = torch.randn(count, spec.num_classes, generator=generator).to(device, self.precision).requires_grad_()
        return Unknowns(image, coordinates, logits=logits)

    def _result(self, course: Descent, unknowns: Unknowns, iterations: int, exhausted: bool, lost: int) -> Reconstruction:
        """Return the result of the start that is kept."""
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
