"""Row sum: labels from the row sums of the classifier's gradient, lowest first; with more images than classes, in proportion.

Formula: g_n = sum_m dW[n, m]; B <= N: the B classes of the lowest g; B > N: counts round(B (g_n - max g) / sum_j (g_j - max g)),
what is missing given to argmin g
Source: Fan et al. 2025, FedLeak (arXiv 2506.08435), as re-implemented by others: the paper was not at hand
For: batches of distinct labels, or of far more images than classes
Limits: needs features that sum to more than zero; wrong where labels repeat in a batch of no more images than classes; not in
the table of tests/benchmarks/label_rules.py
"""

from __future__ import annotations

import torch
from torch import nn

from fedleak.attacks.labels.base import LabelRule, label_rules
from fedleak.attacks.labels.classifier import classifier_gradient
from fedleak.attacks.labels.forward import forward, random_inputs
from fedleak.observation import Observation


@label_rules.register
class RowSum(LabelRule):
    """For batches without repeated labels, or far more images than classes; needs features that sum to more than zero."""

    name = "row-sum"

    def restore(self, observation: Observation, model: nn.Module) -> tuple[int, ...]:
        """Return one label for each image, sorted; distinct ones where there are enough classes."""
        weight, _ = classifier_gradient(observation, model)
        forward(observation, model, random_inputs(observation)).positive_sums(self.name)
        signal, size = weight.double().sum(dim=1), observation.batch_size
        order = signal.argsort(stable=True)
        if size <= len(signal):
            return tuple(sorted(order[:size].tolist()))
        fall = signal.max() - signal
        share = fall / fall.sum() if bool(fall.any()) else torch.full_like(fall, 1 / len(fall))
        counts = (size * share).round().long()
        labels = [int(label) for label in order for _ in range(int(counts[label]))][:size]
        return tuple(sorted([*labels, *[int(order[0])] * (size - len(labels))]))
