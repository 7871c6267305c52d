from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedleak.attacks.labels.classifier import biased_classifier
from fedleak.attacks.labels.consistent import Consistent, consistent_probabilities
from fedleak.errors import AttackError
from fedleak.observation import LocalTraining, observe


@pytest.mark.parametrize("counts", [(1, 0, 0), (0, 4, 0), (3, 1, 4), (0, 0, 64)])
@pytest.mark.parametrize("value", [1.0, -0.5])
def test_exact_for_features_that_do_not_vary(constant, counted, counts, value):
    model = constant([0.55, 0.35, 0.1], value=value)
    restored = Consistent().restore(counted(model, counts), model)
    assert [restored.count(label) for label in range(3)] == list(counts)


def test_probabilities_are_those_of_the_spread_and_not_of_its_mean(constant, crafted):
    torch.manual_seed(1)
    model = constant([0.1] * 10, features=20)
    nn.init.normal_(model.fc.weight, std=0.5)
    nn.init.normal_(model.fc.bias)
    features = 0.5 + torch.randn(4000, 20)
    probabilities = model.fc(features).softmax(dim=1).detach()
    labels = torch.randint(10, (4000,))
    signal = (probabilities - functional.one_hot(labels, 10)) / 4000
    observation = crafted(model, (signal.T @ features).tolist(), signal.sum(dim=0), 4000)
    spread = torch.randn(4000, 20).double()
    classifier = biased_classifier(observation, model, "consistent")
    found, varying = consistent_probabilities(classifier, spread, 4000)
    at_mean, still = consistent_probabilities(classifier, 0 * spread, 4000)
    assert still == pytest.approx(0, abs=1e-12)
    assert 0.1 < varying < 1
    truth = probabilities.double().mean(dim=0)
    assert (found - truth).abs().max() < 0.02
    assert (found - truth).abs().max() < 0.4 * (at_mean - truth).abs().max()


def saturated():
    """A network, images and labels for which the rule fails without surrogate images: it is sure, and mostly wrong."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    return model, torch.rand(16, 3, 4, 4), torch.randint(10, (16,))


def test_surrogate_images_give_the_probabilities():
    model, images, labels = saturated()
    observation = observe(model, images, labels)
    truth = tuple(sorted(labels.tolist()))
    assert Consistent().restore(observation, model) != truth
    assert Consistent().restore(replace(observation, surrogate=images), model) == truth


def test_weights_of_one_step_give_what_the_gradient_gives():
    model, images, labels = saturated()
    seen = replace(observe(model, images, labels), surrogate=images)
    received = {name: value - 0.5 * seen.update[name] for name, value in seen.parameters.items()}
    local = LocalTraining(16, 16, learning_rate=0.5, mode="eval")
    weights = replace(seen, kind="weights", update=received, local=local)
    assert Consistent().restore(weights, model) == tuple(sorted(labels.tolist()))
    plain = Consistent().restore(replace(weights, surrogate=None), model)
    assert plain == Consistent().restore(replace(seen, surrogate=None), model)


def test_a_classifier_without_bias_is_refused(constant, counted):
    model = constant([0.5, 0.5], bias=False)
    with pytest.raises(AttackError, match=r"'consistent' reads .* bias"):
        Consistent().restore(counted(model, (2, 0), [0.5, 0.5]), model)


def test_a_bias_gradient_that_no_cross_entropy_has_is_refused(constant, crafted):
    model = constant([0.5, 0.5])
    with pytest.raises(AttackError, match="positive"):
        Consistent().restore(crafted(model, [[-1.0] * 3] * 2, [-0.1, -0.2], 2), model)
