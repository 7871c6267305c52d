"""Put one dropout layer right before the classifier while the client trains.

Formula: x <- m * x / (1 - p) with m_i ~ Bernoulli(1 - p), for the input x of the last linear layer, fresh at each forward pass
Source: Zheng 2021, "Dropout against Deep Leakage from Gradients", arXiv 2108.11106
Cost: one multiplication for each feature and a noisier gradient; acts in train and in eval mode alike, unlike torch.nn.Dropout
Broken by: Scheliga, Maeder, Seeland 2023, arXiv 2208.06163 (the mask is optimised too); zero columns of one image's gradient
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses
from fedleak.errors import DefenseError
from fedleak.models.inspect import last_linear


@defenses.register
class Dropout(Defense):
    """Drop features before the classifier; see the module for formula and source.

    It is a hook on the classifier and not a layer, so names in the state dict stay. It acts in eval mode as well: a
    client that trains in eval mode would otherwise send an undefended update.
    """

    name = "dropout"
    identity = {"p": 0.0}

    class Config(DefenseConfig):
        """Parameters."""

        p: float = Field(default=0.5, ge=0, lt=1, description="probability that a feature is dropped, in [0, 1)")

    config: Config

    def on_model(self, model: nn.Module, situation: Situation) -> None:
        """Hook the model's last linear layer; local steps draw one after the other from one generator.

        Raises
        ------
        DefenseError
            If the model executes no linear layer.
        """
        p = self.config.p
        if p == 0:
            return
        found = last_linear(model, situation.input)
        if found is None:
            raise DefenseError("defense 'dropout': the model executes no nn.Linear, so it has no classifier to protect")
        _, classifier = found
        generator = situation.seed.generator()

        def drop(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            features: Tensor = inputs[0]
            kept = torch.rand(features.shape, generator=generator) >= p
            return (features * kept.to(features.device) / (1 - p), *inputs[1:])

        classifier.register_forward_pre_hook(drop)
