"""Prune the classifier's gradient where its input features tell most of the image for their size.

Formula: score_i = mean_b |d r_bi / d x_b| / |r_bi| for the classifier's input features r; the columns i of the classifier's
weight gradient with the lowest scores become zero, where a small change of the features sent moves the image most
Source: Sun et al. 2021, "Soteria", CVPR, arXiv 2012.06043; its code for the order, which sums the scores over a batch
Cost: a backward pass for each feature, in each local step; the classifier learns from part of its features
Broken by: Balunovic et al. 2022, arXiv 2111.04706 (leave out the layer); the zero columns show what to leave out
Limits: who leaves out the columns has 44 dB, as without (scenarios/sweeps/defenses.toml)
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from fedleak.defenses.base import Defense, DefenseConfig, Situation, defenses
from fedleak.defenses.gradient_pruning import smallest
from fedleak.errors import DefenseError
from fedleak.modalities.image import InputSpec
from fedleak.models.inspect import last_linear
from fedleak.observation import Tensors
from fedleak.scenario.schema import Scenario

_AT_ONCE = 64


@defenses.register
class Soteria(Defense):
    """Zero columns of the classifier's weight gradient; see the module for formula and source."""

    name = "soteria"
    identity = {"pruning_rate": 0.0}
    excludes = {"soteria": "the second would choose among columns that are zero already"}

    class Config(DefenseConfig):
        """Parameters."""

        pruning_rate: float = Field(
            default=0.6, ge=0, lt=1, description="share of the classifier's input features whose columns are zeroed, in [0, 1)"
        )

    config: Config

    def verify(self, scenario: Scenario, model: nn.Module, input: InputSpec) -> None:
        """Refuse a model without a classifier."""
        if self.config.pruning_rate:
            _classifier(model, input)

    def on_gradient(self, gradient: Tensors, model: nn.Module, images: Tensor, labels: Tensor, situation: Situation) -> Tensors:
        """Return the gradient with the columns of lowest score at zero.

        Raises
        ------
        DefenseError
            If the model executes no linear layer.
        """
        if not self.config.pruning_rate:
            return gradient
        name, classifier = _classifier(model, situation.input)
        pruned = smallest(scores(model, classifier, situation.input.normalize(images)), self.config.pruning_rate)
        weight = f"{name}.weight" if name else "weight"
        return {**gradient, weight: gradient[weight].masked_fill(pruned, 0.0)}


def scores(model: nn.Module, classifier: nn.Linear, inputs: Tensor) -> Tensor:
    """Return the score of each input feature of ``classifier``, (F,); zero for a feature that is dead in the whole batch.

    Parameters
    ----------
    model : Module
        Its mode decides how BatchNorm behaves; its buffers are not changed.
    inputs : Tensor
        Model inputs (B, C, H, W).
    """
    seen: list[Tensor] = []

    def look(_module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])

    inputs = inputs.detach().requires_grad_()
    handle = classifier.register_forward_pre_hook(look, prepend=True)
    try:
        functional_call(model, {name: value.clone() for name, value in model.named_buffers()}, (inputs,))
    finally:
        handle.remove()
    features = seen[-1]
    count = features.shape[1]
    total = features.new_zeros(count)
    for first in range(0, count, _AT_ONCE):
        chosen = torch.arange(first, min(first + _AT_ONCE, count), device=features.device)
        # Where images do not mix before the classifier, as by BatchNorm in train mode, a sum's gradient holds each one's own.
        pick = torch.zeros(len(chosen), *features.shape, dtype=features.dtype, device=features.device)
        pick[torch.arange(len(chosen)), :, chosen] = 1.0
        (slopes,) = torch.autograd.grad(features, inputs, pick, retain_graph=True, is_grads_batched=True)
        size = features[:, chosen].T.detach().abs().clamp_min(torch.finfo(features.dtype).tiny)
        total[chosen] = (slopes.flatten(2).norm(dim=2) / size).mean(1)
    return total


def _classifier(model: nn.Module, input: InputSpec) -> tuple[str, nn.Linear]:
    found = last_linear(model, input)
    if found is None:
        raise DefenseError(
            "defense 'soteria': the model executes no nn.Linear, so it has no classifier whose gradient could be pruned; "
            "use a model that ends in one"
        )
    return found
