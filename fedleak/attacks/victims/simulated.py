"""FedAvg's local steps simulated, so that gradients flow through them to the guessed images.

Formula: g(x, y) = sum_k w_k grad L(f(x_k; W_k), y_k), W_{k+1} = W_k - eta m_k, x_k the images of step k, m_k the optimiser's
direction; w_k = 1 / T for plain SGD, and how much step k moved the weights in the end with momentum (fedleak.local.path). For an
optimiser whose path is no combination of gradients, such as Adam, g = (W_0 - W_T) / sum eta
Source: the simulation of Inverting Gradients (arXiv 2003.14053) and of "Data Leakage in Federated Averaging" (arXiv 2206.12395)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fedleak.attacks.victims.base import Victim
from fedleak.attacks.victims.mean_point import Order, steps_of
from fedleak.attacks.victims.stepping import State, Stepping, clipped
from fedleak.errors import AttackError
from fedleak.observation import LocalTraining, Observation


class SimulatedVictim(Victim):
    """A client that takes local steps on the guessed images; its gradient is the mean over them, as the update weighs it.

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
    model : Module
        Of the clients' architecture, with weights that mean nothing.
    steps : list of list of int
        Rows of the guessed batch that each local step takes; at first the images in order, in every epoch anew.
    order_of : callable, optional
        For who knows more of the steps: of labels, the order in which they were trained on.

    Raises
    ------
    AttackError
        If the update is not finite or zero, the local training is not granted, or nobody knows the optimiser's steps.
    """

    def __init__(
        self, model: nn.Module, observation: Observation, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        if observation.local is None:
            raise AttackError("local steps can be simulated only with local-training knowledge")
        super().__init__(model, observation, device, dtype)
        self.model = self._model
        self.local: LocalTraining = observation.local
        self.steps = steps_of(identity_order(self.local), self.local.num_examples, self.local)
        self.order_of: Callable[[Sequence[int]], Order | None] | None = None
        self._stepping, self._path = Stepping(self.local), self.local.path

    def gradient(self, inputs: Tensor, targets: Tensor) -> list[Tensor]:
        """Return the mean gradient of the local steps by parameter, differentiable in the arguments through all of them.

        Parameters
        ----------
        inputs : Tensor
            Model inputs (N, C, H, W); ``steps`` says which rows each step takes.
        targets : Tensor
            Class probabilities (N, K).
        """
        path = self._path
        if len(self.steps) == 1 and path is not None:
            return super().gradient(inputs[self.steps[0]], targets[self.steps[0]])
        plain = path is not None and path.plain and self.local.gradient_clipping is None
        at, state = copy.copy(self), State()
        at.clips = None
        total = [torch.zeros_like(value) for value in self.parameters.values()]
        for number, rows in enumerate(self.steps):
            gradient = Victim.gradient(at, inputs[rows], targets[rows])
            if plain:
                total = [t + g for t, g in zip(total, gradient, strict=True)]
                stepped = zip(at.parameters.items(), gradient, strict=True)
                at.parameters = {name: value - self.local.learning_rate * g for (name, value), g in stepped}
                continue
            if path is not None:
                seen = clipped(gradient, self.local.gradient_clipping)
                total = [t + path.weights[number] * g for t, g in zip(total, seen, strict=True)]
            moved, state = self._stepping.step(list(at.parameters.values()), gradient, state)
            at.parameters = dict(zip(at.parameters, moved, strict=True))
        if plain:
            return [value / len(self.steps) for value in total]
        if path is not None:
            return total
        reach = sum(self.local.step_rates)
        ends = zip(self.parameters.values(), at.parameters.values(), strict=True)
        return [(start - end) / reach for start, end in ends]


def epochs_of(local: LocalTraining) -> int:
    """Return how many passes over the images the local steps begin."""
    return -(-local.steps // -(-local.num_examples // local.batch_size))


def identity_order(local: LocalTraining) -> Order:
    """Return 0, 1, 2, ... for each epoch, in a row."""
    return tuple(range(local.num_examples)) * epochs_of(local)


def with_copies(steps: Sequence[Sequence[int]], local: LocalTraining) -> list[list[int]]:
    """Return the steps with rows of its own for each epoch: image i of epoch e is row e N + i."""
    per_epoch = -(-local.num_examples // local.batch_size)
    return [[number // per_epoch * local.num_examples + row for row in rows] for number, rows in enumerate(steps)]
