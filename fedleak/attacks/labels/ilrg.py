"""iLRG: label counts from a linear system, with each class's mean feature read off its row of the classifier's gradient.

Formula: e_j = dW[j] / db_j, P_ji = softmax(W e_j + b)_i; least squares for sum_j n_j (P_ji - 1{i = j}) = B db_i for each i, and
sum_j n_j = B; clipped to [0, B] and rounded to counts that sum to B. A class with db_j = 0, whose probability is below the
precision, holds no image.
Source: Ma et al., "Instance-wise Batch Label Restoration via Gradients in Federated Learning", ICLR 2023.
For: batches whose labels repeat
Limits: needs a classifier with a bias; at initialisation 93 to 100 %, worst for 4 labels on ResNet-20 and 64 on LeNet
(tests/benchmarks/label_rules.py)
"""

from __future__ import annotations

import torch
from torch import nn

from fedleak.attacks.labels.base import LabelRule, label_rules
from fedleak.attacks.labels.classifier import biased_classifier
from fedleak.attacks.labels.counts import labels_from_counts
from fedleak.observation import Observation


@label_rules.register
class ILRG(LabelRule):
    """For any batch size, with repeats, and features of any sign; needs a classifier with a bias."""

    name = "ilrg"
    needs_bias = True

    def restore(self, observation: Observation, model: nn.Module) -> tuple[int, ...]:
        """Return one label for each image, sorted."""
        classifier = biased_classifier(observation, model, self.name)
        bias, size = classifier.bias_gradient, observation.batch_size
        held = bias != 0
        features = classifier.weight_gradient[held] / bias[held, None]
        classes = torch.eye(len(bias), dtype=bias.dtype, device=bias.device)[:, held]
        system = torch.cat([classifier.probabilities(features).T - classes, torch.ones_like(classes[:1])])
        counts = torch.zeros_like(bias)
        counts[held] = torch.linalg.pinv(system) @ torch.cat([size * bias, bias.new_tensor([size])])
        return labels_from_counts(counts.clamp(0, size), size)
