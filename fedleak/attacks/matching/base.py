"""The base of all attacks by gradient matching: what they minimise is said of one start, and descended on from many."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.func import vmap

from fedleak.attacks.base import JOINT, Attack, AttackConfig, Budget, Reconstruction
from fedleak.attacks.images.coordinates import Coordinates, PixelCoordinates
from fedleak.attacks.labels.base import label_rules
from fedleak.attacks.matching.descent import Descent, Hooks, MatchingConfig, Start
from fedleak.attacks.matching.rounds import Round, Try
from fedleak.attacks.matching.together import Loss, descend, known
from fedleak.attacks.matching.unknowns import Unknowns
from fedleak.attacks.victims.base import Victim
from fedleak.attacks.victims.simulated import SimulatedVictim
from fedleak.modalities.image import InputSpec
from fedleak.observation import Observation
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

__all__ = ["Descent", "Guess", "Hooks", "MatchingAttack", "MatchingConfig", "Try", "Unknowns"]


@dataclass(frozen=True)
class Guess:
    """One start where its loss is taken; differentiable.

    Attributes
    ----------
    victim : Victim
        Gave the gradient.
    image : Tensor
        The variables (B, C, H, W) that stand for the images.
    pixels : Tensor
        (B, C, H, W), meant for [0, 1] but not clamped.
    gradient, observed : list of Tensor
        Of the guess and of the client, by parameter.
    data : list of Tensor
        What :meth:`MatchingAttack.data` returned for this start.
    """

    victim: Victim
    image: Tensor
    pixels: Tensor
    gradient: list[Tensor]
    observed: list[Tensor]
    data: list[Tensor]


class MatchingAttack(Attack):
    """An attack by gradient matching; subclasses say what they minimise and how.

    A subclass gives a ``distance`` between gradients and an ``optimiser``; it may add a ``prior`` on the pixels, choose
    coordinates and where to start, and restore labels first by default. All of it is said of one start; a round's starts
    are taken together where the network and the optimiser allow it.
    """

    requires: ClassVar[frozenset[Knowledge]] = frozenset({Knowledge.LOCAL_TRAINING})
    Config: ClassVar[type[AttackConfig]] = MatchingConfig
    config: MatchingConfig
    default_labels: ClassVar[str | None] = None
    """Label rule where the configuration names none; ``None`` optimises soft labels jointly."""
    reads: ClassVar[Literal["all", "some", "alone"]] = "some"
    differentiates_twice: ClassVar[bool] = True
    joint_labels: ClassVar[bool] = True
    precision: ClassVar[torch.dtype] = torch.float32
    """In which the loss is computed."""
    spares_restarts: ClassVar[bool] = False
    """Whether a start mostly converges, so that the next is begun only where it has not."""
    loss_scale: ClassVar[float] = 1.0
    """The optimiser is given the loss times this; PyTorch's L-BFGS forgets steps that change the loss by less than 1e-10."""
    one_by_one: ClassVar[bool] = False
    """Whether starts are never taken together, whatever network and optimiser allow."""
    at_once: ClassVar[bool] = False
    takes_counters: ClassVar[bool] = True
    """Whether its loss is made of the victim's ``gradient``, ``compared`` and ``penalty``: it can attack through a defense."""
    countered: Callable[[Observation, Victim], Victim] | None = None
    """What an attacker who knows the client's defenses makes of the victim; see :mod:`fedleak.attacks.adaptive`."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "reconstruct" in vars(cls) and not cls.one_by_one:
            raise TypeError(f"attack {cls.__name__} has a method 'reconstruct' of its own, and must say 'one_by_one = True'")

    def victim(self, observation: Observation, model: nn.Module, device: torch.device) -> Victim:
        """Return the network and the gradient to match: those of ``observation``, or simulated steps where there is none."""
        local = observation.local
        if observation.kind == "weights" and local is not None and local.steps > 1 and local.path is None:
            return SimulatedVictim(model, observation, device, self.precision)
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

    def hooks(self, one: Try) -> Hooks:
        """Return what is done with a start besides stepping; nothing by default."""
        return Hooks()

    def data(self, one: Try) -> list[Tensor]:
        """Return what else the loss of a start depends on, as :attr:`Guess.data`; nothing by default."""
        return []

    def loss(self, guess: Guess) -> Tensor:
        """Return what one start minimises, scalar: by default the distance, the prior, and what the defenses known add."""
        return self.distance(guess.gradient, guess.observed) + self.prior(guess.pixels) + guess.victim.penalty()

    def minimise(self, tries: Sequence[Try], clock: Budget) -> list[Descent]:
        """Descend from all starts, which share a network."""
        return self.descend(tries, clock, [self.data(one) for one in tries])

    def descend(
        self,
        tries: Sequence[Try],
        clock: Budget,
        data: Sequence[Sequence[Tensor]],
        *,
        observed: Sequence[Sequence[Tensor]] | None = None,
        iterations: Sequence[int] | None = None,
        scale: float | None = None,
    ) -> list[Descent]:
        """Descend from all starts with the attack's optimiser and hooks.

        Parameters
        ----------
        tries : sequence of Try
            The starts.
        clock : Budget
            Ends them all.
        data, observed : sequence of sequence of Tensor
            For each start what else its loss depends on, and the gradient to match (by default its victim's).
        iterations : sequence of int, optional
            For each start at most; by default the configuration's.
        scale : float, optional
            In place of ``loss_scale``.
        """
        limits = iterations or [self.config.iterations] * len(tries)
        starts = [
            Start(one.unknowns.variables, self.optimiser, one.budget, limit, self.hooks(one), one.stuck, one.needless, one.course)
            for one, limit in zip(tries, limits, strict=True)
        ]
        scale = self.loss_scale if scale is None else scale
        return descend(self.losses(tries[0]), starts, self.rows(tries, data, observed), self.config, clock, scale=scale)

    def rows(
        self, tries: Sequence[Try], data: Sequence[Sequence[Tensor]], observed: Sequence[Sequence[Tensor]] | None = None
    ) -> list[Tensor]:
        """Return what the losses of the starts depend on besides the variables, (N, ...) each; as for :meth:`descend`."""
        rows = []
        for one, seen, own in zip(tries, observed or [one.victim.observed for one in tries], data, strict=True):
            given = [one.unknowns.targets(one.victim.input.num_classes)] if one.unknowns.logits is None else []
            rows.append([*seen, *given, *own])
        return [torch.stack(values) for values in zip(*rows, strict=True)]

    def losses(self, like: Try) -> Loss:
        """Return the losses of many starts, made of :meth:`loss` of each.

        Parameters
        ----------
        like : Try
            One of them: the others differ from it in what they guess, what they observe, and their data.
        """
        victim, coordinates, joint = like.victim, like.unknowns.coordinates, like.unknowns.logits is not None
        count = len(victim.observed)

        def losses(variables: list[Tensor], data: list[Tensor]) -> Tensor:
            observed, own = data[:count], data[count + (not joint) :]
            pixels = _each(coordinates.decode)(variables[0])
            inputs = victim.input.normalize(pixels.flatten(0, 1)).view_as(pixels)
            victim.take([value[0] for value in variables[1 + joint :]])
            guessed = victim.gradients(inputs, variables[1].softmax(-1) if joint else data[count])

            def loss(image: Tensor, pixels: Tensor, guessed: list[Tensor], observed: list[Tensor], own: list[Tensor]) -> Tensor:
                return self.loss(Guess(victim, image, pixels, victim.compared(guessed, observed), observed, own))

            return _each(loss)(variables[0], pixels, guessed, observed, own)

        return losses

    def rebuilt(self, victim: Victim, unknowns: Unknowns, best: Sequence[Tensor]) -> tuple[Tensor, tuple[int, ...]]:
        """Return the images (B, C, H, W), pixels on the CPU, and the labels at the point that is kept."""
        images = unknowns.coordinates.decode(best[0]).float().cpu()
        labels = unknowns.labels if unknowns.labels is not None else best[1].argmax(-1)
        return victim.restore(images, best[len(best) - len(unknowns.others) :]), tuple(labels.tolist())

    @property
    def many(self) -> bool:
        """Whether starts can be taken together, as far as the attack decides it."""
        mine = not self.one_by_one and self.config.together != 1
        return mine and known(self.optimiser([torch.zeros(1, requires_grad=True)]))

    @property
    def takes_rounds(self) -> bool:
        """Whether a round is better handed over at once: where its starts go together, or the attack has a way of its own."""
        return self.at_once or self.many

    def run(
        self, observations: Sequence[Observation], model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> list[Reconstruction]:
        """Take all observations and restarts together where that is possible, and one by one elsewhere."""
        if not self.many:
            return super().run(observations, model, rng=rng, device=device, budget=budget)
        return Round(self, model, device).run(observations, rng, budget)

    def reconstruct(
        self, observation: Observation, model: nn.Module, *, rng: Seed, device: torch.device, budget: Budget
    ) -> Reconstruction:
        """Descend from each start, and keep the lowest own loss; stop early once one has converged."""
        return Round(self, model, device).one(observation, rng, budget)

    def restore_labels(self, observation: Observation, model: nn.Module) -> tuple[int, ...] | None:
        """Return the labels by the configured or default rule, or ``None`` to optimise them jointly."""
        rule = self.config.labels or self.default_labels
        return label_rules.get(rule)().restore(observation, model) if rule and rule != JOINT else None

    def unknowns(self, observation: Observation, labels: tuple[int, ...] | None, seed: Seed, device: torch.device) -> Unknowns:
        """Return the start that derives from ``seed``."""
        generator = seed.generator()
        count, spec = observation.batch_size, observation.input
        image = self.start((count, *spec.shape), generator).to(device, self.precision).requires_grad_()
        coordinates = self.coordinates(spec, image)
        if labels is not None:
            return Unknowns(image, coordinates, labels=torch.tensor(labels, device=device))
        logits = torch.randn(count, spec.num_classes, generator=generator).to(device, self.precision).requires_grad_()
        return Unknowns(image, coordinates, logits=logits)


def _each(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function of one start as one of many, whose tensors have an axis more; one start by itself is no ``vmap``."""

    def of_many(first: Tensor, *others: Tensor | list[Tensor]) -> Tensor:
        if len(first) > 1:
            return vmap(function)(first, *others)
        rows = [[value[0] for value in other] if isinstance(other, list) else other[0] for other in others]
        return function(first[0], *rows)[None]

    return of_many
