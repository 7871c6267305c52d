from dataclasses import replace

import torch
from torch import nn

from fedleak.attacks.labels.llg import LLG
from fedleak.attacks.labels.llg_plus import LLGPlus
from fedleak.observation import observe


def test_the_offset_uncovers_a_class_that_the_model_favours(constant, counted):
    model = constant([0.7, 0.1, 0.1, 0.1])
    observation = counted(model, (2, 1, 1, 0))
    assert LLGPlus().restore(observation, model) == (0, 0, 1, 2)
    assert LLG().restore(observation, model) == (1, 1, 2, 2)


def test_surrogate_images_are_measured_where_they_are_granted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Sigmoid(), nn.Linear(8, 4))
    with torch.no_grad():
        model[1].weight.mul_(40)
        model[3].weight.mul_(8)
    images, labels = torch.rand(1, 3, 4, 4).expand(8, -1, -1, -1), torch.tensor([0, 0, 0, 1, 1, 1, 2, 3])
    observation = observe(model, images, labels)
    assert LLGPlus().restore(replace(observation, surrogate=images), model) == tuple(labels.tolist())
    assert LLGPlus().restore(observation, model) != tuple(labels.tolist())
