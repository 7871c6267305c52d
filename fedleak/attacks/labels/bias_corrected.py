"""Bias-corrected: read the labels of a batch off the classifier's bias gradient, one after another.

Formula: db_n = (sum_i p_in - count_n) / B. All classes with db_n < 0 are labels once; impact = sum_{db_n < 0} db_n / B
is taken off each of them; then, until there are B labels, take n = argmin db and db_n <- db_n - impact.
Source: the default of the breaching framework (Geiping et al.), after Wainakh et al., "User-Level Label Leakage from
Gradients in Federated Learning" (arXiv 2105.09369).
"""

from __future__ import annotations

from torch import nn

from fedleak.attacks.labels.base import LabelRule, label_rules
from fedleak.attacks.labels.classifier import classifier_gradient
from fedleak.errors import AttackError
from fedleak.observation import Observation


@label_rules.register
class BiasCorrected(LabelRule):
    """For any batch size; exact where the model still gives all classes about the same probability."""

    name = "bias-corrected"

    def restore(self, observation: Observation, model: nn.Module) -> tuple[int, ...]:
        """Return one label for each image, sorted."""
        _, bias = classifier_gradient(observation, model)
        if bias is None:
            raise AttackError(
                "'bias-corrected' reads the classifier's bias gradient, but it has no bias; for one image use 'idlg'"
            )
        size = observation.batch_size
        impacts = bias.detach().double().clone()
        negative = [int(n) for n in impacts.argsort() if impacts[n] < 0]
        # Noise can push more classes below zero than there are images; the most negative are then kept.
        labels = negative[:size]
        impact = impacts[negative].sum() / size
        impacts[labels] -= impact
        while len(labels) < size:
            labels.append(int(impacts.argmin()))
            impacts[labels[-1]] -= impact
        return tuple(sorted(labels))
