"""Zero-shot: label counts from the row sums of the classifier's gradient, and from random inputs in place of the images.

Formula: count_n = B (p_n - g_n / O), with g_n = sum_m dW[n, m], and p_n and O the mean probability and the mean sum of
features of random inputs; rounded to counts that sum to B.
Source: Geng et al., "Towards General Deep Leakage in Federated Learning", 2021 (arXiv 2110.09074).
For: batches whose labels repeat
Limits: takes the probabilities of random inputs for those of the images: 88 % of 4 labels on ResNet-20 at initialisation, and
no more than a guess on a trained one (tests/benchmarks/label_rules.py)
"""

from __future__ import annotations

from torch import nn

from fedleak.attacks.labels.base import LabelRule, label_rules
from fedleak.attacks.labels.classifier import classifier_gradient
from fedleak.attacks.labels.counts import labels_from_counts
from fedleak.attacks.labels.forward import forward, random_inputs
from fedleak.observation import Observation


@label_rules.register
class ZeroShot(LabelRule):
    """For any batch size, with repeats; assumes that images look to the model like noise, as they do before training."""

    name = "zero-shot"

    def restore(self, observation: Observation, model: nn.Module) -> tuple[int, ...]:
        """Return one label for each image, sorted."""
        weight, _ = classifier_gradient(observation, model)
        dummies = forward(observation, model, random_inputs(observation))
        share = weight.double().sum(dim=1) / dummies.positive_sums(self.name).mean()
        counts = observation.batch_size * (dummies.probabilities.mean(dim=0) - share)
        return labels_from_counts(counts, observation.batch_size)
