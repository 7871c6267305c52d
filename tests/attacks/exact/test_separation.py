import pytest
import torch
from torch.nn import functional

from fedleak.attacks.exact.least_squares import SoftmaxSystem
from fedleak.attacks.exact.separation import separate
from fedleak.errors import AttackError
from fedleak.seeding import Seed

CLASSES, FEATURES = 10, 60


def batch(labels, *, dtype=torch.float64, relu=False, seed=0):
    """Return a random classifier, features, and the mean gradient computed by autograd in ``dtype``."""
    generator = torch.Generator().manual_seed(seed)
    bound = FEATURES**-0.5
    weight = torch.empty(CLASSES, FEATURES, dtype=dtype).uniform_(-bound, bound, generator=generator).requires_grad_()
    bias = torch.empty(CLASSES, dtype=dtype).uniform_(-bound, bound, generator=generator).requires_grad_()
    features = torch.randn(len(labels), FEATURES, dtype=dtype, generator=generator)
    features = features.relu() if relu else features + 0.5
    loss = functional.cross_entropy(functional.linear(features, weight, bias), torch.tensor(labels))
    gradients = torch.autograd.grad(loss, [weight, bias])
    return (weight.detach(), bias.detach(), *gradients), features.double()


def error(found, features):
    return float(((found.features - features).norm(dim=1) / features.norm(dim=1)).max())


@pytest.mark.parametrize("size", [1, 2, 5, 9])
def test_distinct_labels_are_separated_in_the_order_given(size):
    labels = torch.randperm(CLASSES, generator=torch.Generator().manual_seed(size))[:size].tolist()
    arguments, features = batch(labels)
    found = separate(*arguments, labels)
    assert error(found, features) < 1e-6
    assert found.certified
    weight, bias = arguments[:2]
    expected = torch.softmax(features @ weight.T + bias, dim=1) - functional.one_hot(torch.tensor(labels), CLASSES)
    torch.testing.assert_close(found.derivatives, expected, atol=1e-6, rtol=0)


def test_float32_gradients_cost_little_and_the_predicted_error_is_of_the_right_size():
    arguments, features = batch([0, 3, 4, 8], dtype=torch.float32)
    found = separate(*arguments, [0, 3, 4, 8])
    assert error(found, features) < 1e-5
    assert found.certified
    assert 0.03 < found.error / error(found, features) < 30


@pytest.mark.parametrize("labels", [[1, 1, 4, 6], [2, 2, 2, 5, 5, 7]])
def test_equal_labels_are_told_apart_where_features_are_not_negative(labels):
    arguments, features = batch(labels, relu=True)
    found = separate(*arguments, labels, nonnegative=True)
    assert found.certified
    for label in set(labels):
        rows = [row for row, other in enumerate(labels) if other == label]
        distances = (found.features[rows][:, None] - features[rows][None]).norm(dim=2) / features[rows].norm(dim=1)
        assert float(distances.min(dim=0).values.max()) < 1e-4


@pytest.mark.parametrize("wrong", [[0, 3, 4, 9], [0, 3, 3, 8], [0, 0, 4, 8]])
def test_wrong_labels_are_not_certified(wrong):
    arguments, _ = batch([0, 3, 4, 8], dtype=torch.float32)
    assert separate(*arguments, wrong).residual > 1e-3
    assert not separate(*arguments, wrong).certified


def test_too_many_samples_and_too_few_labels_are_named():
    arguments, _ = batch([0, 3, 4, 8])
    with pytest.raises(AttackError, match="10 classes"):
        separate(*arguments, list(range(10)))
    with pytest.raises(AttackError, match="rank above 3"):
        separate(*arguments, [0, 3, 4])
    with pytest.raises(AttackError, match="zero or not finite"):
        separate(arguments[0], arguments[1], arguments[2] * 0, arguments[3] * 0, [0])


def test_the_same_seed_gives_the_same():
    arguments, _ = batch([1, 1, 4], relu=True)
    first, second = (separate(*arguments, [1, 1, 4], seed=Seed(3)).features for _ in range(2))
    assert torch.equal(first, second)


def test_normal_equations_are_those_of_the_jacobian_by_autograd():
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    onehot = torch.eye(5, dtype=torch.float64)[[0, 2, 2]]
    share = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    system = SoftmaxSystem(random(5, 3), random(5, 3), random(3), 0.7, onehot, share, random(3).abs(), random(6, 3), 0.4)

    def residual(q):
        point = system.at(q.view(1, 3, 3))
        return torch.cat([(point.misfit * system.columns).flatten(), point.offset.flatten(), 0.4 * point.below.flatten()])

    q = random(9)
    jacobian = torch.autograd.functional.jacobian(residual, q)
    normal, gradient = system.normal(system.at(q.view(1, 3, 3)))
    torch.testing.assert_close(normal[0], jacobian.T @ jacobian)
    torch.testing.assert_close(gradient[0], jacobian.T @ residual(q))
    torch.testing.assert_close(system.at(q.view(1, 3, 3)).cost[0], residual(q).square().sum())
