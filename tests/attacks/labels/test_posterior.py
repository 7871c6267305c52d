import pytest
import torch

from fedleak.attacks.labels.classifier import BiasedClassifier
from fedleak.attacks.labels.forward import Forward
from fedleak.attacks.labels.posterior import sampled_counts
from fedleak.seeding import Seed

CLASSES, FEATURES, SIZE = 5, 8, 4


def drawn(seed):
    """A classifier, reference features, and the classifier's gradient for new images of the same kind, with its counts."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(CLASSES, FEATURES, generator=generator, dtype=torch.float64)
    features = torch.randn(300, FEATURES, generator=generator, dtype=torch.float64)
    probabilities = (features @ weight.T).softmax(dim=1)
    labels = probabilities[:SIZE].multinomial(1, generator=generator)[:, 0]
    derivative = (probabilities[:SIZE] - torch.eye(CLASSES, dtype=torch.float64)[labels]) / SIZE
    zeros = weight.new_zeros(1, CLASSES)
    classifier = BiasedClassifier(derivative.T @ features[:SIZE], derivative.sum(0), weight[None], zeros, weight.new_zeros(1))
    return classifier, Forward(features, probabilities), torch.bincount(labels, minlength=CLASSES).double()


def test_nearer_to_the_counts_than_the_linear_estimate():
    sampled = linear = 0.0
    for seed in range(12):
        classifier, reference, counts = drawn(seed)
        others = Forward(reference.features[SIZE:], reference.probabilities[SIZE:])
        plain = SIZE * (others.probabilities.mean(dim=0) - classifier.bias_gradient)
        linear += float((plain - counts).square().sum())
        sampled += float((sampled_counts(classifier, others, SIZE, Seed(seed)) - counts).square().sum())
    assert sampled < 0.8 * linear


def test_counts_are_repeatable_not_negative_and_sum_to_the_batch():
    classifier, reference, _ = drawn(0)
    counts = sampled_counts(classifier, reference, SIZE, Seed(3))
    assert torch.equal(counts, sampled_counts(classifier, reference, SIZE, Seed(3)))
    assert bool((counts >= 0).all())
    assert float(counts.sum()) == pytest.approx(SIZE)
