"""Row minimum: the labels of a batch without repeats are the rows of the classifier's gradient with the lowest entries.

Formula: labels = argsort_n(min_m dW[n, m])[:B], as dW[n] = (1/B) sum_k (p_kn - 1{n = y_k}) h_k with features h >= 0, so that
an entry below zero needs a label n.
Source: Yin et al., "See through Gradients: Image Batch Recovery via GradInversion", CVPR 2021 (arXiv 2104.07586).
For: batches of distinct labels
Limits: refuses more images than classes and features that can be negative, and is wrong where labels repeat: 60 to 78 % of 8
labels at initialisation (tests/benchmarks/label_rules.py)
"""

from __future__ import annotations

from torch import nn

from fedleak.attacks.labels.base import LabelRule, label_rules
from fedleak.attacks.labels.classifier import classifier_gradient
from fedleak.attacks.labels.forward import forward, random_inputs
from fedleak.errors import AttackError
from fedleak.observation import Observation


@label_rules.register
class RowMin(LabelRule):
    """For batches without repeated labels and features that are never negative, such as those after ReLU or sigmoid."""

    name = "row-min"

    def restore(self, observation: Observation, model: nn.Module) -> tuple[int, ...]:
        """Return B distinct labels, sorted."""
        weight, _ = classifier_gradient(observation, model)
        size, classes = observation.batch_size, observation.input.num_classes
        if size > classes:
            raise AttackError(f"'row-min' restores distinct labels, but {size} images have only {classes}; use 'consistent'")
        if bool((forward(observation, model, random_inputs(observation)).features < 0).any()):
            raise AttackError(
                "'row-min' needs a classifier whose input features are never negative, such as those after ReLU or sigmoid; "
                "this model's can be: use 'consistent' or 'ilrg'"
            )
        lowest = weight.min(dim=1).values.argsort(stable=True)[:size]
        return tuple(sorted(lowest.tolist()))
