"""What every label rule is: from one observation, without images, to the labels behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from fedleak.observation import Observation
from fedleak.registry import Registry
from fedleak.threat import Knowledge


class LabelRule(ABC):
    """Restores the labels of a batch from its update; any attack runs with any of them."""

    name: ClassVar[str]
    requires: ClassVar[frozenset[Knowledge]] = frozenset()
    needs_bias: ClassVar[bool] = False
    """Whether the rule reads the gradient of the classifier's bias."""

    @abstractmethod
    def restore(self, observation: Observation, model: nn.Module) -> tuple[int, ...]:
        """Return one label for each image of the batch, sorted.

        Raises
        ------
        AttackError
            If the model has no last linear layer to read, or the rule does not apply to the batch.
        """


label_rules: Registry[type[LabelRule]] = Registry("label rule", "fedleak.attacks.labels", LabelRule)
