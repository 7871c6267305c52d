"""The clients' network with the parameters that the server sent, ready to be differentiated twice."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from fedleak.attacks.counters.base import Counter
from fedleak.attacks.victims.said import direction_of, first_step_of
from fedleak.attacks.victims.stepping import clipped
from fedleak.errors import AttackError
from fedleak.local.losses import Loss, loss_function
from fedleak.modalities.image import InputSpec
from fedleak.observation import Observation, Tensors


class Victim:
    """What a client computed, as a function of the batch that the attacker guesses.

    Layers that keep running statistics (BatchNorm) follow the client's mode if it is known, and eval mode otherwise.
    All else is in eval mode: what else differs in training, such as dropout, is random, and the draws are the client's.
    The loss is the one that the attacker was told of, and the mean cross-entropy if of none. Of one step of an adaptive optimiser
    the observed gradient is what its update says of it, and :meth:`compared` leaves out what it does not say.

    Parameters
    ----------
    model : Module
        Of the clients' architecture; not changed.
    observation : Observation
        Gives the parameters, the buffers and the input description.
    device : torch.device
        Where to compute.
    dtype : torch.dtype
        Precision to compute in.

    Raises
    ------
    AttackError
        If the update is not finite or holds nothing but zeros.
    """

    vectorised: ClassVar[bool] = True
    """Whether :meth:`gradients` is one tensor program, and nothing else depends on the start; a subclass must say so anew."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.vectorised = bool(vars(cls).get("vectorised", False))

    def __init__(
        self, model: nn.Module, observation: Observation, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        def place(value: Tensor) -> Tensor:
            # Detached, as marking the observation's own tensors as requiring gradients would change it.
            return value.detach().to(device, dtype) if value.is_floating_point() else value.detach().to(device)

        self.input: InputSpec = observation.input
        self.parameters = {name: place(value).requires_grad_() for name, value in observation.parameters.items()}
        self.first_step = first_step_of(observation)
        gradient = direction_of(observation) if self.first_step is None else self.first_step.gradient
        self.observed = [place(gradient[name]) for name in observation.parameters]
        self._bounded = None if self.first_step is None else [place(self.first_step.bounded[n]) for n in observation.parameters]
        local = observation.local
        self.loss_of: Loss = loss_function(None if local is None else local.loss)
        self.clips = None if local is None or observation.kind == "gradient" else local.gradient_clipping
        """Norm to which a step's gradient is clipped."""
        if not all(bool(value.isfinite().all()) for value in self.observed):
            raise AttackError("the update is not finite: there is no gradient to match")
        if not any(bool(value.any()) for value in self.observed):
            raise AttackError("the update is zero: there is no gradient to match")
        self._buffers = {name: place(value) for name, value in observation.buffers.items()}
        self._model = copy.deepcopy(model).to(device, dtype).requires_grad_(False).eval()
        if observation.local is not None and observation.local.mode == "train":
            for module in self._model.modules():
                if hasattr(module, "running_mean"):
                    module.train()

        self.weighs_noise = False
        """Whether the attack weighs likelihood against prior by :meth:`noise`; where it does not, counters may."""
        self.joined = 1
        """How many updates are matched together."""
        self.counters: tuple[Counter, ...] = ()
        self._others: list[list[Tensor]] = []

    def against(self, counters: Sequence[Counter]) -> None:
        """Let what is known of the client's defenses, in their order, change what is matched."""
        self.counters = tuple(counters)
        for counter in counters:
            counter.observe(self)
        if counters and not any(bool(value.any()) for value in self.observed):
            raise AttackError("the defenses leave nothing of the update: there is no gradient to match")

    def start(self, generator: torch.Generator) -> list[Tensor]:
        """Draw the counters' own unknowns for one start, and return them."""
        like = self.observed[0]
        self._others = [[o.to(like).requires_grad_() for o in counter.start(self, generator)] for counter in self.counters]
        return [other for others in self._others for other in others]

    def take(self, others: Sequence[Tensor]) -> None:
        """Use these unknowns of the counters from now on, in the order of :meth:`start`."""
        left = iter(others)
        self._others = [[next(left) for _ in own] for own in self._others]

    def penalty(self) -> Tensor | float:
        """Return what the counters' own unknowns add to an attack's loss."""
        found = [counter.penalty(others) for counter, others in zip(self.counters, self._others, strict=True)]
        return sum((value for value in found if value is not None), start=0.0)

    def compared(self, guessed: list[Tensor], observed: Sequence[Tensor]) -> list[Tensor]:
        """Return the guess with what does not contradict the observed set to it, as the counters know; for the distance only."""
        if self._bounded is not None:
            # Of these entries the update says no more than a sign, and how large they are at least.
            guessed = [
                torch.where(bounded & (g * o.sign() >= o.abs()), o, g)
                for g, o, bounded in zip(guessed, observed, self._bounded, strict=True)
            ]
        for counter in self.counters:
            guessed = counter.compare(guessed, observed)
        return guessed

    def noise(self) -> list[Tensor] | None:
        """Return the variance of what is random in each entry observed, by parameter, or ``None`` if nothing is."""
        variances = [torch.zeros_like(value) for value in self.observed]
        for counter in self.counters:
            variances = counter.noise(variances, self.observed)
        return variances if any(bool(value.any()) for value in variances) else None

    def restore(self, images: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Return the private images behind those (B, C, H, W) that an attack has ended with, the last defense undone first.

        Parameters
        ----------
        images : Tensor
            Pixels.
        others : sequence of Tensor
            The counters' own unknowns as they ended, in the order of :meth:`start`.
        """
        left = list(others)
        for counter, own in zip(reversed(self.counters), reversed(self._others), strict=True):
            count = len(left) - len(own)
            images, left = counter.restore(images, left[count:]), left[:count]
        return images

    @property
    def network(self) -> nn.Module:
        """The module that computes, for forward hooks; its own parameters are not used."""
        return self._model

    def at(self, parameters: Tensors) -> Victim:
        """Return the same network at other parameters, by name."""
        other = copy.copy(self)
        other.parameters = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        return other

    @property
    def alone(self) -> bool:
        """Whether its starts are taken one at a time: with counters or clipping, or where it is not :attr:`vectorised`."""
        return bool(self.counters) or self.clips is not None or not self.vectorised

    def logits(self, inputs: Tensor) -> Tensor:
        """Return the logits (B, K) of model inputs (B, C, H, W)."""
        # BatchNorm writes its running statistics in train mode; they must stay as they were sent.
        buffers = {name: value.clone() for name, value in self._buffers.items()}
        out: Tensor = functional_call(self._model, {**self.parameters, **buffers}, (inputs,))
        return out

    def gradient(self, inputs: Tensor, targets: Tensor) -> list[Tensor]:
        """Return the gradient of the mean loss by parameter, differentiable in the arguments; clipped, and as counters see it.

        Parameters
        ----------
        inputs : Tensor
            Model inputs (B, C, H, W).
        targets : Tensor
            Class probabilities (B, K).
        """
        others = self._others or [[]] * len(self.counters)
        with ExitStack() as stack:
            for counter, own in zip(self.counters, others, strict=True):
                inputs, targets = counter.batch(inputs, targets, own)
                stack.enter_context(counter.forward(self._model, own))
            loss = self.loss_of(self.logits(inputs), targets)
            for counter in self.counters:
                loss = counter.loss(loss, self._model)
        parameters = list(self.parameters.values())
        found = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        guessed = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        if self.clips is not None:
            guessed = clipped(guessed, self.clips)
        for counter in self.counters:
            guessed = counter.guess(guessed, self.observed)
        return guessed

    def gradients(self, inputs: Tensor, targets: Tensor) -> list[Tensor]:
        """Return :meth:`gradient` of many batches, in one tensor program unless the victim is :attr:`alone`.

        Only the forward pass is under ``vmap``, with a copy of the parameters for each batch that takes no memory; what is
        recorded of it is differentiated twice at the usual speed.

        Parameters
        ----------
        inputs : Tensor
            Model inputs (N, B, C, H, W).
        targets : Tensor
            Class probabilities (N, B, K).

        Returns
        -------
        list of Tensor
            (N, ...) by parameter, differentiable in the arguments.

        Raises
        ------
        RuntimeError
            If the network cannot be vectorised, such as for control flow that depends on its input; the text names vmap.
        """
        if self.alone or len(inputs) == 1:
            rows = [self.gradient(own, wanted) for own, wanted in zip(inputs, targets, strict=True)]
            return [values[0][None] if len(rows) == 1 else torch.stack(values) for values in zip(*rows, strict=True)]
        count = len(inputs)
        parameters = {name: v.detach().expand(count, *v.shape).requires_grad_() for name, v in self.parameters.items()}
        buffers = {name: value.expand(count, *value.shape).clone() for name, value in self._buffers.items()}

        def forward(parameters: Tensors, buffers: Tensors, inputs: Tensor) -> Tensor:
            out: Tensor = functional_call(self._model, {**parameters, **buffers}, (inputs,))
            return out

        logits = vmap(forward)(parameters, buffers, inputs)
        if self.loss_of is functional.cross_entropy:
            loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1), reduction="sum") / inputs.shape[1]
        else:
            loss = torch.stack([self.loss_of(*pair) for pair in zip(logits, targets, strict=True)]).sum()
        leaves = list(parameters.values())
        found = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, found, strict=True)]

    def shares_network(self, other: Victim) -> bool:
        """Whether ``other`` differs in nothing but the gradient observed."""
        if (
            self.alone
            or other.alone
            or self._bounded is not None
            or type(self) is not type(other)
            or len(self.observed) != len(other.observed)
        ):
            return False
        mine, theirs = (
            [*v.parameters.values(), *v._buffers.values(), *(torch.tensor(m.training) for m in v._model.modules())]
            for v in (self, other)
        )
        return len(mine) == len(theirs) and all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
