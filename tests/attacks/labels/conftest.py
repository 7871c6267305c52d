import pytest
import torch
from torch import nn

from fedleak.modalities.image import InputSpec
from fedleak.observation import LocalTraining, Observation


class Constant(nn.Module):
    """A classifier whose features are one in every entry, whatever the image: label rules that model features are exact."""

    def __init__(self, probabilities, features=3, bias=True, value=1.0):
        super().__init__()
        self.value = value
        self.fc = nn.Linear(features, len(probabilities), bias=bias)
        with torch.no_grad():
            self.fc.weight.zero_()
            if bias:
                self.fc.bias.copy_(torch.tensor(probabilities).log())

    def forward(self, x):
        return self.fc(torch.full((len(x), self.fc.in_features), self.value))


@pytest.fixture
def constant():
    return Constant


@pytest.fixture
def counted():
    """What the server sees of a batch with the given label counts, for a :class:`Constant` model."""

    def observe(model, counts, probabilities=None):
        size = sum(counts)
        given = torch.tensor(probabilities) if probabilities else model.fc.bias.detach().softmax(0)
        row = given - torch.tensor(counts) / size
        return gradient_of(model, row[:, None].expand_as(model.fc.weight) * model.value, row, size)

    return observe


@pytest.fixture
def crafted():
    """An observation with the given classifier gradient."""
    return lambda model, weight, bias, size: gradient_of(model, torch.tensor(weight), bias, size)


def gradient_of(model, weight, bias, size):
    update = {"fc.weight": weight.clone()}
    if model.fc.bias is not None:
        update["fc.bias"] = torch.as_tensor(bias).clone()
    return Observation(
        kind="gradient",
        parameters={name: value.detach().clone() for name, value in model.named_parameters()},
        update=update,
        input=InputSpec((3, 4, 4), len(weight)),
        local=LocalTraining(size, size, mode="eval"),
    )
