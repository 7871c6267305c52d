"""Each example's own gradient at the weights that were sent, as one row; of large networks a sketch that keeps inner products.

Formula: g_i = grad L(f(x_i), y_i); beyond 2^16 entries S g_i, with S of one random sign a column: E <S a, S b> = <a, b>
Source: the count sketch of Charikar, Chen and Farach-Colton 2002, in which entries meet in order
Limits: BatchNorm by the statistics that were sent, and no dropout, whatever the client did
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedleak.errors import AttackError
from fedleak.local.losses import loss_function
from fedleak.observation import Observation
from fedleak.seeding import Seed

WIDEST = 2**16
"""So many numbers stand for one gradient at most."""


class ExampleGradients:
    """Computes gradients of single examples.

    Parameters
    ----------
    observation : Observation
        Says at which weights, and which of them travelled.
    model : Module
        Of the clients' architecture; it is copied, and its own weights are not used.
    """

    def __init__(self, observation: Observation, model: nn.Module) -> None:
        if observation.kept and not observation.kept_known:
            raise AttackError("the gradient of an example needs the weights that did not travel, and they are not known")
        self._input = observation.input
        self._loss = loss_function(observation.local.loss if observation.local is not None else None)
        self._model = copy.deepcopy(model).cpu().eval()
        state = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        with torch.no_grad():
            for name, value in {**observation.parameters, **observation.buffers}.items():
                state[name].copy_(value)
        self._parameters = {name: state[name].requires_grad_() for name in observation.update}
        entries = sum(value.numel() for value in self._parameters.values())
        self._sketch = _Sketch(entries) if entries > WIDEST else None

    def flat(self, gradient: Mapping[str, Tensor]) -> Tensor:
        """Return a gradient by parameter name as one row (D,)."""
        return self._row(gradient[name] for name in self._parameters)

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the gradients (N, D) of images (N, C, H, W) in [0, 1] with labels (N,).

        One by one: on a CPU a batching rule saves nothing, and some layers have none.

        Raises
        ------
        AttackError
            If there is no image.
        """
        if not len(images):
            raise AttackError("there is no example whose gradient could be compared")
        inputs = self._input.feed(images)
        return torch.stack(
            [self._of(one, label) for one, label in zip(torch.split(inputs, 1), torch.split(labels, 1), strict=True)]
        )

    def _of(self, inputs: Tensor, label: Tensor) -> Tensor:
        with torch.enable_grad():
            loss = self._loss(self._model(inputs), label)
            along = list(self._parameters.values())
            return self._row(torch.autograd.grad(loss, along, allow_unused=True, materialize_grads=True))

    def _row(self, gradients: Iterable[Tensor]) -> Tensor:
        row = torch.cat([gradient.detach().cpu().float().flatten() for gradient in gradients])
        return row if self._sketch is None else self._sketch(row)


class _Sketch:
    """Sums entries of random signs, every 2^16th together, into one."""

    def __init__(self, entries: int) -> None:
        self._rows = -(-entries // WIDEST)
        generator = Seed(0).derive("gradient-sketch", entries).generator()
        self._sign = torch.randint(2, (entries,), generator=generator, dtype=torch.int8) * 2 - 1

    def __call__(self, row: Tensor) -> Tensor:
        whole = functional.pad(row * self._sign, (0, self._rows * WIDEST - len(row)))
        return whole.view(self._rows, WIDEST).sum(0)
