"""Consistent: label counts from the classifier's bias gradient and the probabilities at the batch's mean feature.

Formula: n_c = B (p_c - db_c), rounded to counts that sum to B. The identity is exact for the batch's mean probabilities p; they
are estimated as softmax(W h + b) at h = (db+ @ dW+) / (db+ @ db+) over the classes with db > 0, whose rows of dW are db_c times
the mean feature where the batch holds no image of class c. Granted surrogate images give p instead, as their mean
probabilities: for a calibrated model that is the linear estimate from db of least mean squared error.
Source: fedleak; db_c = p_c - n_c / B as in bias-corrected LLG (arXiv 2105.09369), features as in iLRG (Ma et al., ICLR 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedleak.attacks.labels.base import LabelRule, label_rules
from fedleak.attacks.labels.classifier import BiasedClassifier, biased_classifier, steps
from fedleak.attacks.labels.counts import labels_from_counts
from fedleak.attacks.labels.forward import forward, surrogate_inputs
from fedleak.errors import AttackError
from fedleak.observation import Observation


@label_rules.register
class Consistent(LabelRule):
    """For any batch size, with repeats, and features of any sign; needs a classifier with a bias."""

    name = "consistent"

    def restore(self, observation: Observation, model: nn.Module) -> tuple[int, ...]:
        """Return one label for each image, sorted."""
        classifier = biased_classifier(observation, model, self.name)
        images = surrogate_inputs(observation)
        if images is None:
            probabilities = classifier.probabilities(mean_feature(classifier)[None])[0]
        else:
            ends = [forward(observation, model, images)]
            if observation.kind == "weights":
                ends.append(forward(observation, model, images, received=True))
            first, last = (end.probabilities.mean(dim=0) for end in (ends[0], ends[-1]))
            probabilities = torch.lerp(first, last, steps(observation).mean().to(first.device))
        return labels_from_counts(observation.batch_size * (probabilities - classifier.bias_gradient), observation.batch_size)


def mean_feature(classifier: BiasedClassifier) -> Tensor:
    """Return the mean feature (F,) of the batch, estimated from the rows of classes that are probably absent.

    Raises
    ------
    AttackError
        If no class has a positive bias gradient, which a cross-entropy's cannot be.
    """
    bias = classifier.bias_gradient.clamp(min=0)
    if not bool(bias.any()):
        raise AttackError("'consistent' needs a class whose bias gradient is positive, as cross-entropy always has; none is")
    return (bias @ classifier.weight_gradient) / (bias @ bias)
