"""A batch's mean probabilities from the classifier's gradient, for the label rules that need them.

Formula: h = (db+ @ dW+) / (db+ @ db+), then h = sum_c w_c (dW_c - cov_c) / sum_c w_c db_c, as 'consistent' says; the mean of
softmax(W h_s + b) over features h_s spread around it
Source: fedleak's own
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedleak.attacks.labels.classifier import BiasedClassifier
from fedleak.errors import AttackError

PASSES = 6
"""How often the mean feature is estimated anew; four passes restore as many labels on untrained networks."""


def consistent_probabilities(classifier: BiasedClassifier, spread: Tensor, size: int) -> tuple[Tensor, float]:
    """Return a batch's mean probabilities (N,), estimated from the classifier's gradient, and how much they vary.

    Of the squared distance between one-hot labels and their mean, which a calibrated model that is always sure would give,
    the latter is the share that the probabilities have; in [0, 1].

    Parameters
    ----------
    classifier : BiasedClassifier
        Of N classes and F features.
    spread : Tensor
        (S, F) deviations of features from their mean, as they are to be expected in the batch.
    size : int
        Number of images B.

    Raises
    ------
    AttackError
        If no class has a positive bias gradient, which cannot be that of a cross-entropy.
    """
    rows, bias = classifier.weight_gradient, classifier.bias_gradient
    absent = bias.clamp(min=0)
    if not bool(absent.any()):
        raise AttackError("'consistent' needs a class whose bias gradient is positive, as cross-entropy always has one; none is")
    feature = (absent @ rows) / (absent @ absent)
    for _ in range(PASSES):
        probabilities = classifier.probabilities(feature + spread)
        mean = probabilities.mean(dim=0)
        counts = (size * (mean - bias)).clamp(min=0)
        covariance = (probabilities - mean).T @ spread / len(spread)
        weights = bias / (counts + 1)
        feature = weights @ (rows - covariance) / (weights @ bias)
    probabilities = classifier.probabilities(feature + spread)
    mean = probabilities.mean(dim=0)
    most = (1 - mean.square().sum()).clamp_min(torch.finfo(mean.dtype).tiny)
    return mean, float((probabilities - mean).square().sum(dim=1).mean() / most)
