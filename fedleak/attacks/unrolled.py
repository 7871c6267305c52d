"""Unrolled: differentiate through the simulated local steps of FedAvg, in the order that the classifier's change gives away.

Formula: u = argmin mean_k ((g_k(x, y) - (W_0 - W_T)_k / (eta T)) / s_k)^2 + lambda |u|^2 / n + box + prior * mean over pairs of
epochs of |q(X_e) - q(X_e')|^2, x = decode(u), g the mean gradient of simulated steps, q mean or maximum over an epoch's images
Source: Dimitrov et al. 2022, "Data Leakage in Federated Averaging", TMLR, arXiv 2206.12395, and the simulation of Inverting
Gradients (arXiv 2003.14053); loss, coordinates and optimiser are those of ``natural``, the order of the steps is fedleak's own
For: FedAvg with drift: several local steps at a rate at which the weights move
With momentum, or an adaptive optimiser (Adam, AdamW, Adamax, RMSprop, Adagrad), the simulated steps are its own.
Limits: differentiates through every step, so that time and memory grow with their number; measured on two batches of LeNet
(sigmoid), with two and four steps (tests/benchmarks/local_steps.py)

With ``copies`` every epoch has images of its own, tied by a prior that no order changes; at the end they are matched across
epochs by linear assignment and averaged. Without, all epochs share the images, which needs each epoch's order to be right.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fedleak.attacks.base import AttackConfig, Budget, attacks
from fedleak.attacks.labels.slots import fitted_places, order_of
from fedleak.attacks.matching.base import Descent, Guess, Try, Unknowns
from fedleak.attacks.natural import Natural, NaturalConfig
from fedleak.attacks.victims.base import Victim
from fedleak.attacks.victims.mean_point import Order, steps_of
from fedleak.attacks.victims.simulated import SimulatedVictim, epochs_of, with_copies
from fedleak.attacks.victims.step_order import classifier_of, find_order
from fedleak.errors import AttackError
from fedleak.observation import LocalTraining, Observation
from fedleak.seeding import Seed

_FITS = 0.08
"""What labels may leave of the bias's change, relative to it, for their order to be believed where the classifier tells more."""
_MAPS = 96  # of the random convolution, as the paper's


class UnrolledConfig(NaturalConfig):
    """Parameters."""

    copies: bool = Field(default=False, description="images of its own for each epoch, tied by the prior, instead of shared ones")
    order: Literal["classifier", "given"] = Field(
        default="classifier", description="find the steps' order from the classifier's change, or take the labels as they come"
    )
    prior: float = Field(default=1.0, ge=0, description="weight of the difference between the epochs' copies")
    pool: Literal["mean", "max"] = Field(default="mean", description="what of an epoch's images is compared")
    features: Literal["pixels", "convolution"] = Field(default="pixels", description="the images, or a random 3 x 3 of them")


@attacks.register
class Unrolled(Natural):
    """Gradient matching through the local steps; on a gradient, or a single step, it is ``natural``."""

    name: ClassVar[str] = "unrolled"
    takes_counters: ClassVar[bool] = False
    one_by_one: ClassVar[bool] = True
    models_local_steps: ClassVar[bool] = True
    Config: ClassVar[type[AttackConfig]] = UnrolledConfig
    config: UnrolledConfig

    def victim(self, observation: Observation, model: nn.Module, device: torch.device) -> Victim:
        """Return the network that takes the local steps."""
        if observation.kind == "gradient" or observation.local is None or observation.local.steps == 1:
            return super().victim(observation, model, device)
        victim = SimulatedVictim(model, observation, device, self.precision)
        path = observation.local.path
        if self.config.order == "classifier" and (observation.local.loss is not None or path is None or not path.plain):
            victim.order_of = partial(self._order_of, observation, model)
        return victim

    @staticmethod
    def _told(local: LocalTraining) -> bool:
        """Whether the classifier's change is a combination of the softmax's derivatives."""
        return local.path is not None and local.loss is None

    @staticmethod
    def _order_of(observation: Observation, model: nn.Module, labels: Sequence[int]) -> Order | None:
        """Return the order that unequal steps give away by themselves, if it explains the classifier's bias well."""
        try:
            fitted = fitted_places(observation, model, labels)
        except AttackError:  # of a classifier that is not linear, or has no bias
            return None
        local = observation.local
        if fitted is None or local is None or (fitted.misfit > _FITS and Unrolled._told(local)):
            return None
        return order_of(fitted.slots, fitted.labels, labels)

    def minimise(self, tries: Sequence[Try], clock: Budget) -> list[Descent]:
        """Find the order of the steps, then descend through them."""
        for one in tries:
            if isinstance(one.victim, SimulatedVictim):
                one.victim.steps = self._steps(one.victim, one, clock)
        return super().minimise(tries, clock)

    def _steps(self, victim: SimulatedVictim, one: Try, clock: Budget) -> list[list[int]]:
        local = victim.local
        order = tuple(range(local.num_examples)) * epochs_of(local)
        labels = None if one.unknowns.labels is None else one.unknowns.labels.tolist()[: local.num_examples]
        classifier = classifier_of(victim) if self._told(local) and self.config.order == "classifier" else None
        quick = victim.order_of(labels) if victim.order_of is not None and labels is not None else None
        if quick is not None:
            order = quick
        elif classifier is not None and labels is not None:
            order = find_order(classifier, labels, local, one.seed.derive("order"), clock)
        steps = steps_of(order, local.num_examples, local)
        return with_copies(steps, local) if self.config.copies else steps

    def loss(self, guess: Guess) -> Tensor:
        """Add to ``natural``'s loss how much the epochs' copies differ."""
        loss, victim = super().loss(guess), guess.victim
        if not isinstance(victim, SimulatedVictim) or len(guess.pixels) == victim.local.num_examples:
            return loss
        epochs = guess.pixels.reshape(-1, victim.local.num_examples, *victim.input.shape)
        return loss + self.config.prior * epoch_difference(epochs, self.config.pool, self.config.features)

    def unknowns(self, observation: Observation, labels: tuple[int, ...] | None, seed: Seed, device: torch.device) -> Unknowns:
        """Return the start, with images of its own for each epoch where the configuration asks for copies."""
        unknowns = super().unknowns(observation, labels, seed, device)
        local = observation.local
        if not self.config.copies or observation.kind == "gradient" or local is None or epochs_of(local) == 1:
            return unknowns
        shape = (len(unknowns.image) * epochs_of(local), *unknowns.image.shape[1:])
        unknowns.image = self.start(shape, seed.derive("copies").generator()).to(unknowns.image).requires_grad_()
        assert unknowns.labels is not None
        unknowns.labels = unknowns.labels.repeat(epochs_of(local))
        return unknowns

    def rebuilt(self, victim: Victim, unknowns: Unknowns, best: Sequence[Tensor]) -> tuple[Tensor, tuple[int, ...]]:
        """Return the images and labels, the copies joined."""
        images, labels = super().rebuilt(victim, unknowns, best)
        count = victim.local.num_examples if isinstance(victim, SimulatedVictim) else len(images)
        if len(images) == count:
            return images, labels
        return join_copies(images.reshape(-1, count, *images.shape[1:])), labels[:count]


def epoch_difference(epochs: Tensor, pool: str = "mean", features: str = "pixels") -> Tensor:
    """Return how much the epochs' images differ as sets, scalar; 0 if each epoch holds the same images, in whatever order.

    Parameters
    ----------
    epochs : Tensor
        (E, N, C, H, W).
    pool : str
        ``"mean"`` or ``"max"`` over an epoch's images, element by element.
    features : str
        ``"pixels"``, or ``"convolution"`` for those of a fixed random 3 x 3 convolution.
    """
    if features == "convolution":
        kernel = torch.randn(_MAPS, epochs.shape[2], 3, 3, generator=Seed(0).derive("epoch-prior").generator()).to(epochs)
        flat = functional.conv2d(epochs.flatten(0, 1), kernel / kernel[0].numel() ** 0.5, padding=1)
        epochs = flat.reshape(*epochs.shape[:2], *flat.shape[1:])
    pooled = epochs.mean(1) if pool == "mean" else epochs.amax(1)
    pairs = [(a - b).square().mean() for a, b in combinations(pooled, 2)]
    return torch.stack(pairs).mean() if pairs else epochs.new_zeros(())


def join_copies(epochs: Tensor) -> Tensor:
    """Return images (N, C, H, W): each of the first epoch averaged with its match in every other, of epochs (E, N, C, H, W)."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and few attacks come here

    total = epochs[0].clone()
    for other in epochs[1:]:
        distances = torch.cdist(epochs[0].flatten(1), other.flatten(1)).square()
        total += other[torch.from_numpy(linear_sum_assignment(distances.detach().cpu().numpy())[1])]
    return total / len(epochs)
