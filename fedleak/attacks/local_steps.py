"""FedAvg's local steps seen as one gradient: at the mean of their points, and corrected for the drift between them.

Formula: (W0 - WT) / (eta T) = mean_k grad L(f(x_k; W_k), y_k), taken as grad L(f(x; W), y) at W = mean_k W_k, plus the
drift between the two at the best guess of x so far, with the steps in the order that explains the update best
Source: fedleak's own; the drift is what a surrogate point alone leaves out
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor, nn

from fedleak.attacks.base import Budget
from fedleak.attacks.victim import Victim
from fedleak.errors import AttackError
from fedleak.observation import LocalTraining, Observation, Tensors

_TRIALS = 60  # orders of the images that one search tries at most


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
        self._sent: Tensors = {name: value.detach().to(device, dtype) for name, value in observation.parameters.items()}

    def corrected(
        self, inputs: Tensor, targets: Tensor, weights: Sequence[Tensor], order: Sequence[int], budget: Budget
    ) -> tuple[list[Tensor], list[int]]:
        """Return the gradient that the true images have at the mean point, as far as a guess of them tells the drift.

        Parameters
        ----------
        inputs, targets : Tensor
            The guess: model inputs (B, C, H, W) and class probabilities (B, K).
        weights : sequence of Tensor
            By parameter, to measure how well an order explains the update.
        order : sequence of int
            Where the search for the order starts: indices of the images, all epochs in a row.
        budget : Budget
            The search ends where it does.

        Returns
        -------
        gradient : list of Tensor
            By parameter.
        order : list of int
            The best found.
        """
        best, order = self._simulate(inputs, targets, order), list(order)
        least, trials, improved = self._misfit(best, weights), 0, True
        pairs = [pair for pair in combinations(range(len(order)), 2) if pair[0] // len(inputs) == pair[1] // len(inputs)]
        while improved and trials < _TRIALS:
            improved = False
            for a, b in pairs[: _TRIALS - trials]:
                if budget.exhausted:
                    break
                trials += 1
                swapped = list(order)
                swapped[a], swapped[b] = order[b], order[a]
                found = self._simulate(inputs, targets, swapped)
                if (misfit := self._misfit(found, weights)) < least:
                    best, order, least, improved = found, swapped, misfit, True
        there = self.gradient(inputs, targets)
        return [o + g.detach() - s for o, g, s in zip(self.observed, there, best, strict=True)], order

    def any_order(self, images: int, generator: torch.Generator) -> list[int]:
        """Draw an order of the images: one permutation for each epoch, in a row."""
        epochs = -(-self._local.steps // -(-images // self._local.batch_size))
        return [index for _ in range(epochs) for index in torch.randperm(images, generator=generator).tolist()]

    def _simulate(self, inputs: Tensor, targets: Tensor, order: Sequence[int]) -> list[Tensor]:
        parts, weights = steps_of(order, len(inputs), self._local), self._sent
        total = [torch.zeros_like(value) for value in self.observed]
        for part in parts:
            gradient = [value.detach() for value in self.at(weights).gradient(inputs[part], targets[part])]
            total = [t + g / len(parts) for t, g in zip(total, gradient, strict=True)]
            stepped = zip(weights.items(), gradient, strict=True)
            weights = {name: value - self._local.learning_rate * g for (name, value), g in stepped}
        return total

    def _misfit(self, simulated: Sequence[Tensor], weights: Sequence[Tensor]) -> float:
        compared = zip(weights, simulated, self.observed, strict=True)
        return sum(float((w * (s - o)).square().sum().detach()) for w, s, o in compared)


def steps_of(order: Sequence[int], images: int, local: LocalTraining) -> list[list[int]]:
    """Return the images of each local step: the order cut into batches, anew in each epoch."""
    epochs = [order[first : first + images] for first in range(0, len(order), images)]
    cut = [list(epoch[at : at + local.batch_size]) for epoch in epochs for at in range(0, images, local.batch_size)]
    return cut[: local.steps]


def at_mean_point(observation: Observation) -> Observation:
    """Return a FedAvg update as a mean gradient at the mean of the points where the local steps were taken.

    Of T steps on a nearly straight path the k-th starts k / T of the way along, so that their mean is (T - 1) / 2T of the
    way from the model sent to the model received: no way for one step, nearly half of it for many. A gradient is returned
    as it is.
    """
    if observation.kind == "gradient" or observation.local is None:
        return observation
    way = (observation.local.steps - 1) / (2 * observation.local.steps)
    mean = {name: torch.lerp(value, observation.update[name], way) for name, value in observation.parameters.items()}
    return replace(observation, kind="gradient", parameters=mean, update=observation.gradient())
