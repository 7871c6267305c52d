import pytest
import torch

from fedleak.attacks.labels.ilrg import ILRG
from fedleak.errors import AttackError


@pytest.mark.parametrize("counts", [(1, 0, 0), (0, 4, 0), (3, 1, 4), (0, 0, 64)])
@pytest.mark.parametrize("value", [1.0, -0.5])
def test_exact_for_features_that_do_not_vary(constant, counted, counts, value):
    model = constant([0.55, 0.35, 0.1], value=value)
    restored = ILRG().restore(counted(model, counts), model)
    assert [restored.count(label) for label in range(3)] == list(counts)


def test_class_means_differ_from_the_batch_mean(constant, crafted):
    # Each class has a feature of its own, so that the mean probabilities are not those at the mean feature.
    model = constant([1 / 3] * 3, features=2)
    with torch.no_grad():
        model.fc.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    labels = [0, 0, 1, 1, 2]
    features = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])[labels]
    signal = (model.fc(features).softmax(1) - torch.eye(3)[labels]).detach() / 5
    observation = crafted(model, (signal.T @ features).tolist(), signal.sum(dim=0), 5)
    assert ILRG().restore(observation, model) == tuple(labels)


def test_a_class_that_the_gradient_says_nothing_of_is_left_out(constant, crafted):
    model = constant([0.5, 0.5, 1e-12])
    row = torch.tensor([-0.25, 0.25, 0.0])
    assert ILRG().restore(crafted(model, row[:, None].expand(3, 3).tolist(), row, 4), model) == (0, 0, 0, 1)


def test_a_classifier_without_bias_is_refused(constant, counted):
    model = constant([0.5, 0.5], bias=False)
    with pytest.raises(AttackError, match=r"'ilrg' reads .* bias.*zero-shot"):
        ILRG().restore(counted(model, (2, 0), [0.5, 0.5]), model)
