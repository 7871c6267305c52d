import pytest
import torch
from torch import nn

from fedleak.attacks.labels.row_min import RowMin
from fedleak.errors import AttackError
from fedleak.observation import observe


def test_the_lowest_entry_of_a_row_counts_and_not_its_sum(constant, crafted):
    model = constant([0.25] * 4, features=2)
    gradient = [[-0.1, -0.1], [0.9, -0.2], [0.1, 0.1], [-0.3, 0.9]]
    assert RowMin().restore(crafted(model, gradient, [0.0] * 4, 2), model) == (1, 3)


def test_more_images_than_classes_are_refused(constant, counted):
    model = constant([0.5, 0.5])
    with pytest.raises(AttackError, match="3 images have only 2"):
        RowMin().restore(counted(model, (2, 1)), model)


def test_features_that_can_be_negative_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 4))
    observation = observe(model, torch.rand(2, 3, 4, 4), torch.tensor([0, 3]))
    with pytest.raises(AttackError, match="never negative"):
        RowMin().restore(observation, model)
