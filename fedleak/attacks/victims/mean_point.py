"""FedAvg's local steps seen as one gradient: at the mean of their points, and corrected for the drift between them.

Formula: (W0 - WT) / (eta T) = mean_k grad L(f(x_k; W_k), y_k), taken as grad L(f(x; W), y) at W = mean_k W_k, plus the
drift between the two at the best guess of x so far, with the steps in the order that explains the update best. With momentum,
weight decay or rates that differ, both means are weighted as the update weighs the steps (fedleak.local.path)
Source: fedleak's own; the drift is what a surrogate point alone leaves out
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor, nn

from fedleak.attacks.base import Budget
from fedleak.attacks.victims.base import Victim
from fedleak.attacks.victims.stepping import State, Stepping
from fedleak.errors import AttackError
from fedleak.observation import LocalTraining, Observation, Tensors

_TRIALS = 60  # orders of the images that one search tries at most
_CLEAR = 0.03  # cosine with the residual above which another order is tried
Order = tuple[int, ...]
Guess = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Drift:
    """What local steps add to the gradient at their mean point.

    Attributes
    ----------
    order : tuple of int
        Indices of the images as they were trained on, all epochs in a row.
    values : list of Tensor
        By parameter.
    """

    order: Order
    values: list[Tensor]


class LocalVictim(Victim):
    """A client that took several local steps, as a gradient at the mean of the points where it took them.

    Parameters
    ----------
    model : Module
        Of the clients' architecture; not changed.
    observation : Observation
        Of kind ``"weights"``, with the local training granted.
    device : torch.device
        Where to compute.
    dtype : torch.dtype
        Precision to compute in.

    Raises
    ------
    AttackError
        If the update is not finite or zero, or the local training is not granted.
    """

    def __init__(self, model: nn.Module, observation: Observation, device: torch.device, dtype: torch.dtype) -> None:
        if observation.local is None:
            raise AttackError("local steps can be retraced only with local-training knowledge")
        super().__init__(model, at_mean_point(observation), device, dtype)
        self._local: LocalTraining = observation.local
        self._stepping, self._path = Stepping(observation.local), observation.local.path
        self._images = observation.local.num_examples
        self._sent: Tensors = {name: value.detach().to(device, dtype) for name, value in observation.parameters.items()}

    def drift(
        self, guess: Guess, weights: Sequence[Tensor], before: Drift, tried: Collection[Order], search: bool, budget: Budget
    ) -> Drift:
        """Return what the update differs by from the gradient at the mean point, as far as a guess of the images tells.

        A guess that was fitted with the drift of a wrong order explains the update with that order well: its images have
        adapted. What they could not adapt to, the residual, is the part of the drift that no images explain, and points
        from the wrong order towards the right one. So that order is chosen whose drift lies in the residual's direction.

        Parameters
        ----------
        guess : tuple of Tensor
            Model inputs (B, C, H, W) and class probabilities (B, K).
        weights : sequence of Tensor
            By parameter, for the angle between gradients.
        before : Drift
            What the guess was fitted with.
        tried : collection of tuple of int
            Orders that guesses were fitted with; if there are none, the search goes on until no swap of two images helps,
            and otherwise it looks for the best swap only.
        search : bool
            Whether to look for another order at all.
        budget : Budget
            The search ends where it does.
        """
        there = [value.detach() for value in self.gradient(*guess)]
        residual = [w * (o - d - g) for w, o, d, g in zip(weights, self.observed, before.values, there, strict=True)]
        best = Drift(before.order, self._drift(guess, before.order, there))
        origin = best.values if tried else before.values

        def gain(candidate: Drift) -> float:
            return _cosine([w * (c - o) for w, c, o in zip(weights, candidate.values, origin, strict=True)], residual)

        most, trials, improved = _CLEAR if tried else gain(best), 0, search
        while improved:
            improved = False
            for order in [order for order in self._swaps(best.order) if order not in tried]:
                if trials == _TRIALS or budget.exhausted:
                    return best
                trials += 1
                found = Drift(order, self._drift(guess, order, there))
                if (cosine := gain(found)) > most:
                    best, most, improved = found, cosine, not tried
        return best

    def _swaps(self, order: Order) -> list[Order]:
        """Return the orders that differ by one swap of two images within an epoch and between its steps."""
        places = [(at // self._images, at % self._images // self._local.batch_size) for at in range(len(order))]
        swaps = []
        for a, b in combinations(range(len(order)), 2):
            if places[a][0] == places[b][0] and places[a][1] != places[b][1]:
                swapped = list(order)
                swapped[a], swapped[b] = order[b], order[a]
                swaps.append(tuple(swapped))
        return swaps

    def no_drift(self, generator: torch.Generator) -> Drift:
        """Return zero, and a random order: one permutation of the images for each epoch, in a row."""
        epochs = -(-self._local.steps // -(-self._images // self._local.batch_size))
        order = [index for _ in range(epochs) for index in torch.randperm(self._images, generator=generator).tolist()]
        return Drift(tuple(order), [torch.zeros_like(value) for value in self.observed])

    def _drift(self, guess: Guess, order: Order, there: Sequence[Tensor]) -> list[Tensor]:
        inputs, targets = guess
        parts, weights, state = steps_of(order, len(inputs), self._local), self._sent, State()
        total, path = [-value for value in there], self._path
        for number, part in enumerate(parts):
            gradient = [value.detach() for value in self.at(weights).gradient(inputs[part], targets[part])]
            if path is not None and path.plain:
                total = [t + g / len(parts) for t, g in zip(total, gradient, strict=True)]
                stepped = zip(weights.items(), gradient, strict=True)
                weights = {name: value - self._local.learning_rate * g for (name, value), g in stepped}
                continue
            assert path is not None
            total = [t + path.weights[number] * g for t, g in zip(total, gradient, strict=True)]
            moved, state = self._stepping.step(list(weights.values()), gradient, state)
            weights = dict(zip(weights, moved, strict=True))
        return total


def _cosine(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    product, first, second = (sum(float((x * y).sum()) for x, y in zip(p, q, strict=True)) for p, q in ((a, b), (a, a), (b, b)))
    return product / (first * second) ** 0.5 if first * second > 0 else 0.0


def steps_of(order: Sequence[int], images: int, local: LocalTraining) -> list[list[int]]:
    """Return the images of each local step: the order cut into batches, anew in each epoch."""
    epochs = [order[first : first + images] for first in range(0, len(order), images)]
    cut = [list(epoch[at : at + local.batch_size]) for epoch in epochs for at in range(0, images, local.batch_size)]
    return cut[: local.steps]


def at_mean_point(observation: Observation) -> Observation:
    """Return a FedAvg update as a mean gradient at the mean of the points where the local steps were taken.

    Of T steps on a nearly straight path the k-th starts k / T of the way along, so that their mean is (T - 1) / 2T of the
    way from the model sent to the model received: no way for one step, nearly half of it for many. With momentum, weight
    decay or rates that differ it is where a gradient that stays the same would have led. A gradient is returned as it is.
    """
    if observation.kind == "gradient" or observation.local is None:
        return observation
    gradient = observation.gradient()
    mean = mean_point(observation.parameters, observation.update, gradient, observation.local)
    return replace(observation, kind="gradient", parameters=mean, update=gradient)


def mean_point(sent: Tensors, received: Tensors, gradient: Tensors, local: LocalTraining) -> Tensors:
    """Return the mean of the points where the local steps were taken, as the update weighs them, on a path as said above.

    Parameters
    ----------
    sent, received, gradient : dict of str to Tensor
        Parameters before and after, and the mean gradient.
    local : LocalTraining
        Of an optimiser with a path.
    """
    path = local.path
    assert path is not None
    if path.plain:
        way = (local.steps - 1) / (2 * local.steps)
        return {name: torch.lerp(value, received[name], way) for name, value in sent.items()}
    reach, lost = (sum(w * v for w, v in zip(path.weights, values, strict=True)) for values in (path.reach, path.lost))
    return {name: (1 - lost) * value - reach * gradient[name] for name, value in sent.items()}
