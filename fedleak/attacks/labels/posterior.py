"""Label counts by sampling batches of reference features that explain the classifier's gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fedleak.attacks.labels.classifier import BiasedClassifier
from fedleak.attacks.labels.forward import Forward
from fedleak.seeding import Seed

CHAINS = 8
SWEEPS = 40
"""Passes over the batch; the first 60 % cool the chains, the counts are averaged over the rest."""
_COOLING = 0.6
_TOLERANCES = 1.0, 0.1
_LEAST_PROBABILITY = 1e-6
_MOST_DIRECTIONS = 16
_LARGEST_PRODUCT = 2**22  # images times classes times chains; beyond it a sweep takes seconds


@dataclass(frozen=True)
class _Pool:
    """Reference images as candidates: image m with label n adds (p_m - e_n) g_m^T to the gradient.

    Attributes
    ----------
    probabilities : Tensor
        (M, N).
    features : Tensor
        (M, K): g, features in the classifier's own directions, whitened, and a constant.
    squares : Tensor
        (M, N) squared norms of what each candidate adds.
    """

    probabilities: Tensor
    features: Tensor
    squares: Tensor

    def outer(self, candidates: Tensor) -> Tensor:
        """Return what ``candidates`` (S,), numbered image * N + label, add to the gradient, (S, N, K)."""
        classes = self.probabilities.shape[1]
        image, label = candidates // classes, candidates % classes
        derivative = self.probabilities[image] - functional.one_hot(label, classes).to(self.probabilities)
        return derivative[:, :, None] * self.features[image][:, None, :]

    def log_likelihood(self, rest: Tensor, tolerance: float) -> Tensor:
        """Return the log likelihoods (S, M, N) of each candidate for what is ``rest`` (S, N, K) to be explained."""
        expected = (torch.einsum("mn,snk->smk", self.probabilities, rest) * self.features).sum(dim=2)
        labelled = torch.einsum("snk,mk->smn", rest, self.features)
        return (expected[:, :, None] - labelled - self.squares / 2) / tolerance**2


def sampled_counts(classifier: BiasedClassifier, reference: Forward, size: int, seed: Seed) -> Tensor:
    """Return the posterior mean (N,) of the label counts of a batch, by Gibbs sampling.

    A batch is ``size`` reference images, drawn with replacement, each with a label drawn from the model's own
    probabilities. It explains the gradient up to Gaussian noise in the directions in which the classifier's logits vary,
    which also stands for the difference between the batch's images and the nearest reference images.

    Parameters
    ----------
    classifier : BiasedClassifier
        Of N classes and F features; the weights as they were sent are used.
    reference : Forward
        Of M images of the batch's kind.
    size : int
        Number of images B.
    seed : Seed
        Of the chains.
    """
    generator = seed.derive("label-chains").generator()
    pool, target = _pool(classifier, reference, size)
    images, classes = pool.probabilities.shape
    chains = max(1, min(CHAINS, _LARGEST_PRODUCT // (images * classes)))
    prior = pool.probabilities.clamp_min(_LEAST_PROBABILITY).log()

    def draw(scores: Tensor) -> Tensor:
        uniform = torch.rand(scores.shape, generator=generator, dtype=torch.float64).clamp_min(1e-300).to(scores)
        return (scores - (-uniform.log()).log()).flatten(1).argmax(dim=1)

    batch = torch.stack([draw(prior.expand(chains, -1, -1)) for _ in range(size)])
    parts = torch.stack([pool.outer(member) for member in batch])
    rest, counts = target - parts.sum(dim=0), target.new_zeros(classes)
    for sweep in range(SWEEPS):
        cooled = min(1.0, sweep / (SWEEPS * _COOLING))
        tolerance = _TOLERANCES[0] ** (1 - cooled) * _TOLERANCES[1] ** cooled
        for member in range(size):
            rest = rest + parts[member]
            batch[member] = draw(prior + pool.log_likelihood(rest, tolerance))
            parts[member] = pool.outer(batch[member])
            rest = rest - parts[member]
        if cooled == 1.0:
            counts += torch.bincount((batch % classes).flatten(), minlength=classes).to(counts)
    return counts * (size / counts.sum())


def _pool(classifier: BiasedClassifier, reference: Forward, size: int) -> tuple[_Pool, Tensor]:
    """Return the candidates, and the gradient times B in their directions, (N, K)."""
    probabilities, features = reference.probabilities, reference.features
    mean, weight = features.mean(dim=0), classifier.weights[0]
    vectors = torch.linalg.svd(weight - weight.mean(dim=0), full_matrices=False)[2]
    directions = vectors[: min(len(weight) - 1, _MOST_DIRECTIONS)].T
    scale = ((features - mean) @ directions).std(dim=0).clamp_min(1e-12) * directions.shape[1] ** 0.5
    varying = (features - mean) @ directions / scale
    whitened = torch.cat([varying, torch.ones_like(varying[:, :1])], dim=1)
    bias = classifier.bias_gradient
    rows = (classifier.weight_gradient - bias[:, None] * mean) @ directions / scale
    squares = (probabilities.square().sum(dim=1, keepdim=True) - 2 * probabilities + 1) * whitened.square().sum(1, keepdim=True)
    return _Pool(probabilities, whitened, squares), size * torch.cat([rows, bias[:, None]], dim=1)
