"""Given: the labels that the threat model grants.

Formula: labels = those of the observation.
Source: the assumption of most published attacks, such as Geiping et al., "Inverting Gradients" (arXiv 2003.14053).
For: any batch, where the threat model grants the labels
Limits: restores nothing: a figure made with it says what images leak to who has the labels already
"""

from __future__ import annotations

from torch import nn

from fedleak.attacks.labels.base import LabelRule, label_rules
from fedleak.errors import AttackError
from fedleak.observation import Observation
from fedleak.threat import Knowledge


@label_rules.register
class Given(LabelRule):
    """Restores nothing: needs a threat model that grants the labels."""

    name = "given"
    requires = frozenset({Knowledge.LABELS})

    def restore(self, observation: Observation, model: nn.Module) -> tuple[int, ...]:
        """Return the granted labels, sorted."""
        if observation.labels is None:
            raise AttackError(
                "the label rule 'given' needs the labels, which the threat model does not grant; use preset 'labels-known'"
            )
        labels, size, classes = observation.labels, observation.batch_size, observation.input.num_classes
        if len(labels) != size:
            raise AttackError(
                f"{len(labels)} labels are granted for {size} images, expected one for each; use another label rule"
            )
        if not all(0 <= label < classes for label in labels):
            raise AttackError(f"the granted labels {labels} are not all classes from 0 to {classes - 1}; use another label rule")
        return tuple(sorted(labels))
