import pytest
import torch
from torch import nn

from fedleak.models.trial import evaluating, tried


def network():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()


def test_modes_buffers_and_generators_are_as_before():
    model = network()
    model[2].eval()
    before = {name: value.clone() for name, value in model.named_buffers()}
    torch.manual_seed(3)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    one, again = (tried(model, torch.ones(3, 4)) for _ in range(2))
    assert torch.equal(one, again)
    assert torch.equal(torch.rand(1), drawn)
    assert [module.training for module in model] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_modes_come_back_where_the_network_raises():
    model = network()
    with pytest.raises(RuntimeError):
        tried(model, torch.ones(3, 5))
    assert model.training
    with evaluating(model):
        assert not model[2].training
    assert model[2].training


def test_what_is_changed_stands_in_its_place_for_the_trial_alone():
    model = nn.Linear(2, 1)
    assert torch.equal(tried(model, torch.ones(1, 2), {"weight": torch.zeros(1, 2)})[0], model.bias)
    assert bool(model.weight.any())
