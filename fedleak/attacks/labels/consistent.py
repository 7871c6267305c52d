"""Consistent: label counts from the classifier's bias gradient and the batch's mean probabilities, which it also estimates.

Formula: n_c = B (p_c - db_c), exact for the batch's mean probabilities p, and rounded to counts that sum to B. Rows obey
dW_c = db_c h + cov(p_c, h) - (n_c / B) (h_c - h) with the mean features h of the batch and h_c of its class c. First
h = (db+ @ dW+) / (db+ @ db+) over the classes with db > 0; then, in six passes, p and cov are those of softmax(W h_s + b) for
features h_s that spread around h as those of noise with natural images' spectrum spread around their mean, scaled by
sqrt(1 - 1/B), and h = sum_c w_c (dW_c - cov_c) / sum_c w_c db_c with w_c = db_c / (n_c + 1), as the last term varies as n_c.
Where those p vary so much between features that the model tells classes apart (over 0.15 of what a calibrated model that is
always sure would give) and counts come out far from integers (over 0.25), the mean features no longer give p; p is then 1/N,
what a calibrated model gives on average for equally likely classes. Granted surrogate images give their mean probabilities for
p: for a calibrated model and images of the same kind, n = B (p - db) is then the linear estimate from db of least mean squared
error; where it is far from integers and 64 or more are granted, it is averaged with the mean counts of batches of surrogate
features that explain dW and db, drawn by Gibbs sampling.
Source: fedleak; db_c = p_c - n_c / B as in LLG (arXiv 2105.09369), features from rows as in iLRG (Ma et al., ICLR 2023).
For: batches whose labels repeat
Limits: needs a classifier with a bias; nearly certain at initialisation, and 75 and 69 % of 4 and 8 labels on a trained
ResNet-20, where it gains from labels that are balanced (tests/benchmarks/label_rules.py); public images help there, and a part
is still missing
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedleak.attacks.labels.base import LabelRule, label_rules
from fedleak.attacks.labels.classifier import biased_classifier, steps
from fedleak.attacks.labels.counts import labels_from_counts
from fedleak.attacks.labels.forward import forward, natural_inputs, surrogate_inputs
from fedleak.attacks.labels.posterior import sampled_counts
from fedleak.attacks.labels.probabilities import consistent_probabilities
from fedleak.attacks.labels.slots import labelled_places
from fedleak.observation import Observation
from fedleak.seeding import Seed

_TELLS_APART = 0.15
_FAR_FROM_INTEGER = 0.25
_LEAST_POOL = 64


@label_rules.register
class Consistent(LabelRule):
    """For any batch size, with repeats, and features of any sign; needs a classifier with a bias."""

    name = "consistent"
    needs_bias = True

    def restore(self, observation: Observation, model: nn.Module) -> tuple[int, ...]:
        """Return one label for each image, sorted."""
        if (places := labelled_places(observation, model)) is not None:
            return tuple(sorted(places[1]))
        return labels_from_counts(estimated_counts(observation, model, self.name), observation.batch_size)


def estimated_counts(observation: Observation, model: nn.Module, rule: str) -> Tensor:
    """Return real-valued label counts (N,), for the label rule of name ``rule``.

    Raises
    ------
    AttackError
        If the classifier has no bias, or its gradient cannot be that of a cross-entropy.
    """
    classifier, size = biased_classifier(observation, model, rule), observation.batch_size
    images, bias = surrogate_inputs(observation), classifier.bias_gradient
    if images is not None:
        linear = size * (_mean_probabilities(observation, model, images) - bias)
        if len(images) < _LEAST_POOL or not _far_from_integers(linear):
            return linear
        seed = Seed(0).derive("label-posterior", observation.round, observation.client)
        return (linear + sampled_counts(classifier, forward(observation, model, images), size, seed)) / 2
    features = forward(observation, model, natural_inputs(observation)).features
    spread = (features - features.mean(dim=0)) * (1 - 1 / size) ** 0.5
    probabilities, varying = consistent_probabilities(classifier, spread, size)
    counts = size * (probabilities - bias)
    if varying > _TELLS_APART and _far_from_integers(counts):
        return size * (1 / len(bias) - bias)
    return counts


def _far_from_integers(counts: Tensor) -> bool:
    return float((counts - counts.round()).abs().max()) > _FAR_FROM_INTEGER


def _mean_probabilities(observation: Observation, model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the mean probabilities (N,) of ``inputs``, averaged over the local steps."""
    first = last = forward(observation, model, inputs).probabilities.mean(dim=0)
    if observation.kind == "weights":
        last = forward(observation, model, inputs, received=True).probabilities.mean(dim=0)
    return torch.lerp(first, last, steps(observation).mean().to(first.device))
