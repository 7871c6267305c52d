from dataclasses import replace

import pytest
import torch

from fedleak.attacks.labels.interpolated import Interpolated
from fedleak.attacks.labels.zero_shot import ZeroShot
from fedleak.errors import AttackError
from fedleak.observation import LocalTraining

LEARNING_RATE = 0.2
BEFORE, AFTER = (0.7, 0.2, 0.1), (0.1, 0.2, 0.7)


def weights_after_two_steps(model, counts):
    """FedAvg over two steps, whose mean probabilities are .75 of those before and .25 of those after."""
    size = sum(counts)
    row = 0.75 * torch.tensor(BEFORE) + 0.25 * torch.tensor(AFTER) - torch.tensor(counts) / size
    moved = -2 * LEARNING_RATE * row[:, None].expand_as(model.fc.weight)
    bias = torch.tensor(AFTER).log() - moved.sum(dim=1)
    local = LocalTraining(size, size // 2, steps=2, learning_rate=LEARNING_RATE, mode="eval")
    return {"kind": "weights", "update": {"fc.weight": moved, "fc.bias": bias}, "local": local}


@pytest.mark.parametrize("counts", [(8, 0, 0), (1, 3, 4), (0, 2, 6)])
def test_exact_where_probabilities_move_in_a_straight_line(constant, counted, counts):
    model = constant(BEFORE)
    observation = replace(counted(model, counts), **weights_after_two_steps(model, counts))
    restored = Interpolated().restore(observation, model)
    assert [restored.count(label) for label in range(3)] == list(counts)
    if counts == (1, 3, 4):
        assert ZeroShot().restore(observation, model) != restored


def test_a_gradient_makes_it_zero_shot(constant, counted):
    model = constant(BEFORE)
    for counts in ((3, 1, 0), (0, 1, 15)):
        observation = counted(model, counts)
        assert Interpolated().restore(observation, model) == ZeroShot().restore(observation, model)


def test_weights_without_the_learning_rate_are_refused(constant, counted):
    model = constant(BEFORE)
    observation = replace(counted(model, (1, 0, 0)), **(weights_after_two_steps(model, (2, 0, 0)) | {"local": None}))
    with pytest.raises(AttackError, match="learning rate"):
        Interpolated().restore(observation, model)
