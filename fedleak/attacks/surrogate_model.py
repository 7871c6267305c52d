"""Surrogate model: match a FedAvg update at a point between the weights sent and received, chosen by the optimiser.

Formula: x, a = argmin 1 - cos(W_0 - W_T, grad L(f(x; (1 - a) W_0 + a W_T), y)) + tv * TV(x), x and a within [0, 1]
Source: Zhu, Yao, Blaschko 2023, "Surrogate Model Extension (SME)", ICML 2023, arXiv 2306.00127
For: FedAvg with several local steps
Limits: the surrogate gained nothing over the model sent on the eight images tried, and both end at 14 to 15 dB, with the mean
image at 12 to 13

The optimiser is the authors': Adam on the gradient itself, not on its signs, with rate 1 on model inputs and 0.001 on a from
0.5, both times 0.1 at 3/8, 5/8 and 7/8 of 1,000 iterations, labels known. Their total variation, 0.01 on model inputs and the
mean of both directions, is about 0.02 in pixels; here it is 0.1. Sample images 0-3 and 4-7, DLG's LeNet, four local steps at
rate 0.01: 13.9 and 14.2 dB; their total variation 10.8 and 11.4; a = 0 throughout 15.0 and 13.7, so that the surrogate gains
nothing there; signed Adam with rate 0.1, on the first four, 11.6; mean image 11.8 and 13.4.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedleak.attacks.base import AttackConfig, attacks
from fedleak.attacks.inverting_gradients import InvertingGradients, InvertingGradientsConfig
from fedleak.attacks.matching.base import Hooks, Try
from fedleak.attacks.victims.base import Victim
from fedleak.observation import Observation


class SurrogateVictim(Victim):
    """A network anywhere between the weights sent and received.

    Parameters
    ----------
    model : Module
        Of the clients' architecture; not changed.
    observation : Observation
        Of kind ``"weights"``.
    device : torch.device
        Where to compute.
    dtype : torch.dtype
        Precision to compute in.
    way : float
        Where the search starts, in [0, 1].
    """

    def __init__(
        self, model: nn.Module, observation: Observation, device: torch.device, dtype: torch.dtype, way: float = 0.5
    ) -> None:
        super().__init__(model, observation, device, dtype)
        self._first = way
        self._way: Tensor | None = None
        self._received = {name: observation.update[name].detach().to(device, dtype) for name in observation.parameters}

    def start(self, generator: torch.Generator) -> list[Tensor]:
        """Return the share of the way where the search starts."""
        return [torch.full((), self._first).to(self.observed[0]).requires_grad_()]

    def take(self, others: Sequence[Tensor]) -> None:
        """Use this share of the way from now on."""
        [self._way] = others

    def gradient(self, inputs: Tensor, targets: Tensor) -> list[Tensor]:
        """Return the gradient at the share of the way in use; at the parameters themselves before there is one."""
        at = self if self._way is None else self.between(self._way)
        return Victim.gradient(at, inputs, targets)

    def between(self, way: Tensor) -> Victim:
        """Return the network at a share of the way, scalar in [0, 1], from the weights sent; differentiable in the share."""
        other = copy.copy(self)
        other._way = None
        other.parameters = {name: torch.lerp(value, self._received[name], way) for name, value in self.parameters.items()}
        return other


class SurrogateModelConfig(InvertingGradientsConfig):
    """Parameters, with the authors' values but for the total variation."""

    learning_rate: float = Field(
        default=1.0, gt=0, description="Adam's on the images, times 0.1 at 3/8, 5/8 and 7/8 of the iterations"
    )
    signed: bool = Field(default=False, description="give Adam only the signs of the images' gradient")
    way: float = Field(
        default=0.5, ge=0, le=1, description="where the search starts, from the weights sent (0) to those received (1)"
    )
    way_rate: float = Field(default=1e-3, ge=0, description="Adam's learning rate for that share of the way")


@attacks.register
class SurrogateModel(InvertingGradients):
    """Surrogate Model Extension (arXiv 2306.00127); for one step it matches the gradient at the weights sent."""

    name: ClassVar[str] = "surrogate-model"
    takes_counters: ClassVar[bool] = False
    models_local_steps: ClassVar[bool] = True
    Config: ClassVar[type[AttackConfig]] = SurrogateModelConfig
    config: SurrogateModelConfig

    def victim(self, observation: Observation, model: nn.Module, device: torch.device) -> Victim:
        """Return the network between the two weights, or at those sent for a single step."""
        if observation.kind == "gradient" or observation.local is None or observation.local.steps == 1:
            return super().victim(observation, model, device)
        return SurrogateVictim(model, observation, device, self.precision, self.config.way)

    def optimiser(self, variables: list[Tensor]) -> torch.optim.Optimizer:
        """Return Adam, with a learning rate of its own for the place of the surrogate, the one scalar among the variables."""
        optimiser = super().optimiser([variable for variable in variables if variable.ndim])
        if ways := [variable for variable in variables if not variable.ndim]:
            optimiser.add_param_group({"params": ways, "lr": self.config.way_rate})
        return optimiser

    def hooks(self, one: Try) -> Hooks:
        """Return those of Inverting Gradients, and keep the place between its ends."""
        hooks = super().hooks(one)

        def after_step(step: int, variables: list[Tensor], optimiser: torch.optim.Optimizer) -> None:
            assert hooks.after_step is not None
            hooks.after_step(step, variables, optimiser)
            if one.unknowns.others:
                with torch.no_grad():
                    variables[-1].clamp_(0, 1)

        return replace(hooks, after_step=after_step)
