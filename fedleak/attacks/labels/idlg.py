"""iDLG: the label of a single image is the class whose row of the classifier's gradient is lowest.

Formula: label = argmin_n sum_m dW[n, m], as dL/dlogit_n = p_n - 1{n = label} is negative for the label only and
dW[n] = dL/dlogit_n * h^T with features h >= 0.
Source: Zhao, Mopuri, Bilen, "iDLG: Improved Deep Leakage from Gradients", 2020 (arXiv 2001.02610).
For: one image
Limits: refuses batches; certain for cross-entropy with a hard label and features that sum to more than zero
"""

from __future__ import annotations

from torch import nn

from fedleak.attacks.labels.base import LabelRule, label_rules
from fedleak.attacks.labels.classifier import classifier_gradient
from fedleak.errors import AttackError
from fedleak.observation import Observation


@label_rules.register
class IDLG(LabelRule):
    """Certain for one image, the cross-entropy of a hard label and features that sum to more than zero."""

    name = "idlg"

    def restore(self, observation: Observation, model: nn.Module) -> tuple[int, ...]:
        """Return the label of the one image."""
        if observation.batch_size != 1:
            raise AttackError(f"'idlg' restores one label, but there are {observation.batch_size} images; use 'bias-corrected'")
        weight, _ = classifier_gradient(observation, model)
        return (int(weight.sum(dim=1).argmin()),)
