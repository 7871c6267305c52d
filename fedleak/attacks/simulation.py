"""FedAvg's local steps simulated, so that gradients flow through them to the guessed images.

Formula: g(x, y) = (W_0 - W_T) / (eta T), W_{k+1} = W_k - eta grad L(f(x_k; W_k), y_k), x_k the images of step k
Source: the simulation of Inverting Gradients (arXiv 2003.14053) and of "Data Leakage in Federated Averaging" (arXiv 2206.12395)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedleak.attacks.victim import Victim
from fedleak.errors import AttackError
from fedleak.observation import LocalTraining, Observation


class SimulatedVictim(Victim):
    """A client that takes local steps of plain SGD on the guessed images; its gradient is the mean over them.

    Parameters
    ----------
    model : Module
        Of the clients' architecture; not changed.
    observation : Observation
        With the local training granted; a gradient is one step.
    device : torch.device
        Where to compute.
    dtype : torch.dtype
        Precision to compute in.

    Attributes
    ----------
    steps : list of list of int
        Rows of the guessed batch that each local step takes; at first the images in order, in every epoch anew.

    Raises
    ------
    AttackError
        If the update is not finite or zero, or the local training is not granted.
    """

    def __init__(
        self, model: nn.Module, observation: Observation, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        if observation.local is None:
            raise AttackError("local steps can be simulated only with local-training knowledge")
        super().__init__(model, observation, device, dtype)
        self.local: LocalTraining = observation.local
        self.steps = rows_of_steps(observation.local)

    def gradient(self, inputs: Tensor, targets: Tensor) -> list[Tensor]:
        """Return the mean gradient of the local steps by parameter, differentiable in the arguments through all of them.

        Parameters
        ----------
        inputs : Tensor
            Model inputs (N, C, H, W); ``steps`` says which rows each step takes.
        targets : Tensor
            Class probabilities (N, K).
        """
        if len(self.steps) == 1:
            return super().gradient(inputs[self.steps[0]], targets[self.steps[0]])
        at = copy.copy(self)
        total = [torch.zeros_like(value) for value in self.parameters.values()]
        for rows in self.steps:
            gradient = Victim.gradient(at, inputs[rows], targets[rows])
            total = [t + g for t, g in zip(total, gradient, strict=True)]
            stepped = zip(at.parameters.items(), gradient, strict=True)
            at.parameters = {name: value - self.local.learning_rate * g for (name, value), g in stepped}
        return [value / len(self.steps) for value in total]


def rows_of_steps(local: LocalTraining, *, copies: bool = False, order: Sequence[int] | None = None) -> list[list[int]]:
    """Return which rows of the guessed batch each local step takes: each epoch cut into batches.

    Parameters
    ----------
    local : LocalTraining
        Says how many images, steps, and images in a step.
    copies : bool
        Whether each epoch has rows of its own, so that its order is free; the same rows in each epoch otherwise.
    order : sequence of int, optional
        The images in the order of each epoch's steps; 0, 1, 2, ... by default.
    """
    count = local.num_examples
    order = range(count) if order is None else order
    steps: list[list[int]] = []
    while len(steps) < local.steps:
        first = epochs_of(local, len(steps)) * count if copies else 0
        steps += [[first + row for row in order[at : at + local.batch_size]] for at in range(0, count, local.batch_size)]
    return steps[: local.steps]


def epochs_of(local: LocalTraining, steps: int | None = None) -> int:
    """Return how many passes over the images the local steps, or the first so many of them, begin."""
    return -(-(local.steps if steps is None else steps) // -(-local.num_examples // local.batch_size))
