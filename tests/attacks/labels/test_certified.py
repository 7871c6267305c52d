import math

import pytest
import torch
from torch import nn

from fedleak.attacks.labels.certified import Certified, first_certified, nearest_labels
from fedleak.attacks.labels.classifier import biased_classifier
from fedleak.attacks.labels.consistent import Consistent
from fedleak.errors import AttackError
from fedleak.observation import observe
from fedleak.seeding import Seed


def sure():
    """A network that is sure, and mostly wrong, so that no estimate of its mean probabilities is right."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


def batches(count, size):
    generator = torch.Generator().manual_seed(5)
    for _ in range(count):
        yield torch.rand(size, 3, 4, 4, generator=generator), torch.randperm(10, generator=generator)[:size]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_right_labels_are_told_from_wrong_ones_that_are_nearer_to_the_estimate(size):
    model = sure()
    for images, labels in batches(2, size):
        truth = tuple(sorted(labels.tolist()))
        near = [tuple(sorted((*truth[1:], other))) for other in range(10) if other != truth[0]]
        classifier = biased_classifier(observe(model, images, labels), model, "certified")
        assert first_certified(classifier, [*near, truth], True, Seed(0)) == truth
        assert first_certified(classifier, near[:2], True, Seed(0)) in near[:2]


def test_batches_that_cannot_be_separated_are_left_to_the_estimate():
    model = sure()
    for images, labels in batches(1, 5):
        observation = observe(model, images, labels)
        assert Certified().restore(observation, model) == Consistent().restore(observation, model)


def test_a_noisy_gradient_certifies_nothing():
    model = sure()
    for images, labels in batches(1, 3):
        observation = observe(model, images, labels)
        generator = torch.Generator().manual_seed(2)
        for value in observation.update.values():
            value += 0.05 * value.std() * torch.randn(value.shape, generator=generator)
        assert Certified().restore(observation, model) == Consistent().restore(observation, model)


def test_nearest_labels_come_in_order_and_without_repeats():
    estimate = torch.tensor([1.4, 0.3, 1.2, 0.1], dtype=torch.float64)
    found = nearest_labels(estimate, 3, 20)
    distances = [math.dist([labels.count(label) for label in range(4)], estimate.tolist()) for labels in found]
    assert distances == sorted(distances)
    assert found[0] == (0, 0, 2) or math.isclose(distances[0], min(distances))
    assert len(found) == len(set(found)) > 10
    assert nearest_labels(estimate, 3, 2) == found[:2]


def test_a_classifier_without_bias_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 10, bias=False)).eval()
    with pytest.raises(AttackError, match="bias"):
        Certified().restore(observe(model, torch.rand(2, 3, 4, 4), torch.tensor([1, 2])), model)
