"""Certified: the label counts nearest to an estimate for which features can be found that explain the classifier's gradient.

Formula: for counts n by distance from the rule 'consistent''s estimate, softmax consistency [dW | db] = (1/B) sum_k d_k [h_k | 1]
with d_k = softmax(W h_k + b) - onehot(y_k) is solved for all h_k; the first counts whose residual is that of float32 rounding
are taken. If none of those tried leave so little, the counts that leave least are taken.
Source: fedleak's own; the features are those of ``fedleak.attacks.exact.separation``.
For: small batches
Limits: needs a classifier with a bias, and tries the counts nearest to the estimate only: 91 and 69 % of 4 and 8 labels on a
trained ResNet-20 (tests/benchmarks/label_rules.py); where nothing is certified, as under noise, it is an estimate
"""

from __future__ import annotations

import itertools
from collections import Counter

from torch import Tensor, nn

from fedleak.attacks.exact.separation import separate
from fedleak.attacks.labels.base import LabelRule, label_rules
from fedleak.attacks.labels.classifier import BiasedClassifier, biased_classifier
from fedleak.attacks.labels.consistent import estimated_counts
from fedleak.attacks.labels.counts import labels_from_counts
from fedleak.attacks.labels.forward import forward, natural_inputs
from fedleak.errors import AttackError
from fedleak.observation import Observation
from fedleak.seeding import Seed

LARGEST_BATCH = 16
"""Beyond it, a single separation takes seconds. Batches must also be smaller than half the number of classes: for 8 images of 10
classes and a trained network, the right counts were not among the few that time allows to try."""
_TRIALS_TIMES_SQUARE = 1000  # about 2 CPU seconds at any batch size, as a separation's time grows as the square of it
_STARTS = 4
_LIKELY_CLASSES = 12


@label_rules.register
class Certified(LabelRule):
    """For batches below half the number of classes, up to 16, and one local step; larger ones are left to 'consistent'."""

    name = "certified"
    needs_bias = True

    def restore(self, observation: Observation, model: nn.Module) -> tuple[int, ...]:
        """Return one label for each image, sorted."""
        size, counts = observation.batch_size, estimated_counts(observation, model, self.name)
        classifier = biased_classifier(observation, model, self.name)
        several_steps = observation.kind == "weights" and observation.local is not None and observation.local.steps > 1
        if size > min((len(counts) - 1) // 2, LARGEST_BATCH) or several_steps:
            return labels_from_counts(counts, size)
        nonnegative = bool((forward(observation, model, natural_inputs(observation)).features >= 0).all())
        candidates = nearest_labels(counts, size, max(3, _TRIALS_TIMES_SQUARE // size**2))
        return first_certified(
            classifier, candidates, nonnegative, Seed(0).derive("certified", observation.round, observation.client)
        )


def nearest_labels(counts: Tensor, size: int, limit: int) -> list[tuple[int, ...]]:
    """Return sorted labels, at most ``limit``, whose counts are nearest to ``counts`` (N,), the nearest first.

    All that differ from the nearest in up to two labels, replaced by classes of high counts, are considered.
    """
    first = labels_from_counts(counts, size)
    estimate: list[float] = counts.tolist()
    likely = counts.argsort(descending=True, stable=True)[:_LIKELY_CLASSES].tolist()
    found = {first}
    for removed, added in itertools.product(range(size), likely):
        rest = first[:removed] + first[removed + 1 :]
        found.add(tuple(sorted((*rest, added))))
        for second, other in itertools.product(range(removed, size - 1), likely):
            found.add(tuple(sorted((*rest[:second], *rest[second + 1 :], added, other))))

    def distance(labels: tuple[int, ...]) -> float:
        return float(sum(count * (count - 2 * estimate[label]) for label, count in Counter(labels).items()))

    return sorted(sorted(found), key=distance)[:limit]


def first_certified(
    classifier: BiasedClassifier, candidates: list[tuple[int, ...]], nonnegative: bool, seed: Seed
) -> tuple[int, ...]:
    """Return the first of ``candidates`` that a separation certifies, or else the one that leaves least.

    Parameters
    ----------
    classifier : BiasedClassifier
        Of one local step.
    candidates : list of tuple of int
        Labels of the batch, the likeliest first.
    nonnegative : bool
        Whether the classifier's input features cannot be negative.
    seed : Seed
        Of the separations' random starts.
    """
    residuals = []
    for labels in candidates:
        try:
            separation = separate(
                classifier.weights[0],
                classifier.biases[0],
                classifier.weight_gradient,
                classifier.bias_gradient,
                labels,
                nonnegative=nonnegative,
                seed=seed,
                starts=_STARTS,
            )
        except AttackError:  # of a rank above the batch size, as after noise: no labels can be certified
            return candidates[0]
        if separation.certified:
            return labels
        residuals.append(separation.residual)
    return candidates[residuals.index(min(residuals))]
