"""Put dropout before the classifier, or before every layer but the first, while the client trains.

Formula: x <- m * x / (1 - p) with m_i ~ Bernoulli(1 - p), for the input x of the layers named, fresh at each forward pass
Source: Zheng 2021, "Dropout against Deep Leakage from Gradients", arXiv 2108.11106
Cost: one multiplication for each feature and a noisier gradient; acts in train and in eval mode alike, unlike torch.nn.Dropout
Broken by: Scheliga, Maeder, Seeland 2023, arXiv 2208.06163 (masks are optimised too); the zeros of the classifier's gradient
Limits: who reads the masks has 45 dB, as without (scenarios/sweeps/defenses.toml); dropout before every layer holds better: 13
dB above the mean image (scenarios/claims/dropout.toml)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses
from fedleak.errors import DefenseError
from fedleak.modalities.image import InputSpec
from fedleak.models.inspect import LeafCall, execution_order
from fedleak.scenario.schema import Scenario

CLASSIFIER, EVERYWHERE = "classifier", "everywhere"


@defenses.register
class Dropout(Defense):
    """Drop features before some layers; see the module for formula and source.

    It is a hook on the layers and not a layer, so names in the state dict stay. It acts in eval mode as well: a
    client that trains in eval mode would otherwise send an undefended update.
    """

    name = "dropout"
    identity = {"p": 0.0}
    flags = ("dropout-on",)
    not_before = {"precode": "dropout is put before layers of the network that has the bottleneck already"}

    class Config(DefenseConfig):
        """Parameters."""

        p: float = Field(default=0.5, ge=0, lt=1, description="probability that a feature is dropped, in [0, 1)")
        where: str = Field(
            default=CLASSIFIER,
            description="classifier: before the last linear layer; everywhere: before each linear and convolutional layer "
            "but the first; or the name of a module, before it",
        )

    config: Config

    def verify(self, scenario: Scenario, model: nn.Module, input: InputSpec) -> None:
        """Refuse a model without the layers that are named."""
        if self.config.p > 0:
            sites(model, input, self.config.where)

    def on_model(self, model: nn.Module, situation: Situation) -> None:
        """Hook the layers; local steps draw one after the other from one generator.

        Raises
        ------
        DefenseError
            If the model executes no such layer.
        """
        p = self.config.p
        if p == 0:
            return
        generator = situation.seed.generator()

        def draw(features: Tensor) -> Tensor:
            return (torch.rand(features.shape, generator=generator) >= p).to(features)

        for site in sites(model, situation.input, self.config.where):
            site.module.register_forward_pre_hook(dropping(draw, p))


def dropping(masks: Callable[[Tensor], Tensor], p: float) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """Return a hook before a module's forward pass that multiplies its input (B, ...) by a mask over 1 - p.

    Parameters
    ----------
    masks : callable
        Given the input, returns the mask of its shape, in [0, 1].
    p : float
        Probability that a feature is dropped, in [0, 1).
    """

    def drop(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0] * masks(inputs[0]) / (1 - p), *inputs[1:])

    return drop


def sites(model: nn.Module, input: InputSpec, where: str) -> list[LeafCall]:
    """Return the first executions of the modules whose input is dropped from, in order.

    Raises
    ------
    DefenseError
        If there is none.
    """
    calls = list({call.name: call for call in reversed(execution_order(model, input).calls)}.values())[::-1]
    linear = [call for call in calls if isinstance(call.module, nn.Linear)]
    if where == CLASSIFIER:
        if not linear:
            raise DefenseError("defense 'dropout': the model executes no nn.Linear, so it has no classifier to protect")
        return linear[-1:]
    if where == EVERYWHERE:
        layers = [call for call in calls if isinstance(call.module, nn.Linear | nn.Conv2d)]
        if len(layers) < 2:
            raise DefenseError(
                "defense 'dropout': the model executes no linear or convolutional layer behind its first one, "
                f"so that there is nothing to drop from; set where = '{CLASSIFIER}'"
            )
        return layers[1:]
    named = [call for call in calls if call.name == where]
    if not named:
        known = ", ".join(call.name for call in calls)
        raise DefenseError(f"defense 'dropout': the model executes no module '{where}'; it executes {known}")
    return named
