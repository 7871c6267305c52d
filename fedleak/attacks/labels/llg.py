"""LLG: count labels by the row sums of the classifier's gradient, one image's share at a time.

Formula: g_n = sum_m dW[n, m]; impact = (1 + 1/N) / B * sum_{g_n < 0} g_n for N classes. Each class with g_n < 0 gets one
label; then, until there are B, n = argmin g gets one. Each label taken raises its g_n by -impact.
Source: Wainakh et al., "User-Level Label Leakage from Gradients in Federated Learning", PoPETs 2022 (arXiv 2105.09369).
For: batches whose labels repeat
Limits: needs features that sum to more than zero, and grows worse with the batch: 85 % of 4 labels and 78 % of 64 on LeNet at
initialisation, 53 % on an MLP (tests/benchmarks/label_rules.py)
"""

from __future__ import annotations

from torch import nn

from fedleak.attacks.labels.base import LabelRule, label_rules
from fedleak.attacks.labels.classifier import classifier_gradient
from fedleak.attacks.labels.counts import labels_by_impact
from fedleak.attacks.labels.forward import forward, random_inputs
from fedleak.observation import Observation


@label_rules.register
class LLG(LabelRule):
    """For any batch size, from the gradient alone; needs features that sum to more than zero."""

    name = "llg"

    def restore(self, observation: Observation, model: nn.Module) -> tuple[int, ...]:
        """Return one label for each image, sorted."""
        weight, _ = classifier_gradient(observation, model)
        forward(observation, model, random_inputs(observation)).positive_sums(self.name)
        signal = weight.double().sum(dim=1)
        impact = float(signal.clamp(max=0).sum()) / observation.batch_size * (1 + 1 / len(signal))
        return labels_by_impact(signal, impact, observation.batch_size, signal < 0)
