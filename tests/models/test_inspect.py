import pytest
import torch
from torch import nn

from fedleak.modalities.image import InputSpec
from fedleak.models.inspect import execution_order, last_linear

INPUT = InputSpec((3, 8, 8), 10)


class Reordered(nn.Module):
    """Defines the classifier first, runs it last, and uses one activation twice."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4 * 4 * 4, 10)
        self.act = nn.Sigmoid()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.never_run = nn.Linear(5, 5)

    def forward(self, x):
        x = self.act(self.first(x))
        return self.head(self.act(self.second(x)).flatten(1))


def test_order_is_that_of_execution_not_definition():
    order = execution_order(Reordered(), INPUT)
    assert [call.name for call in order.calls] == ["first", "act", "second", "act", "head"]
    assert order.feed_forward
    assert order.calls[0].input_shape == (3, 8, 8)
    assert order.calls[0].output_shape == (4, 4, 4)
    assert order.calls[-1].input_shape == (64,)


def test_last_linear_is_the_one_executed_last():
    model = Reordered()
    assert last_linear(model, INPUT) == ("head", model.head)


def test_last_linear_of_a_model_without_one():
    assert last_linear(nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten()), INPUT) is None


class Residual(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.body = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
        self.inplace = inplace

    def forward(self, x):
        y = self.body(x)
        if self.inplace:
            y += x
        else:
            y = y + x
        return self.head(y)


@pytest.mark.parametrize("inplace", [False, True])
def test_residual_connection_breaks_the_chain(inplace):
    order = execution_order(Residual(inplace), INPUT)
    assert not order.feed_forward
    assert "'body'" in order.breaks[0]
    assert "residual" in order.breaks[0]


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 10)

    def forward(self, x):
        return torch.relu(self.head(x.flatten(1)))


def test_function_after_the_last_leaf_breaks_the_chain():
    order = execution_order(Functional(), INPUT)
    assert "the output" in order.breaks[0]


class Transposing(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 10)

    def forward(self, x):
        return self.head(x.transpose(2, 3).flatten(1))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(192, 10)

    def forward(self, x):
        return self.head(self.conv(self.conv(x)).flatten(1))


def test_transposition_and_shared_weights_break_the_chain():
    assert not execution_order(Transposing(), INPUT).feed_forward
    assert "more than once" in execution_order(Shared(), INPUT).breaks[0]


def test_inplace_activation_module_keeps_the_chain():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 10))
    assert execution_order(model, INPUT).feed_forward


def test_model_and_generators_are_left_as_they_were():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 10)).train()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    execution_order(model, INPUT)
    assert [module.training for module in model] == [True, True, False, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model)


class Laid(nn.Module):
    """Turns its input to channels_last, as a network does for speed, and may do something to the values besides."""

    def __init__(self, between):
        super().__init__()
        self.conv, self.act, self.head, self.between = nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Linear(256, 10), between

    def forward(self, x):
        return self.head(self.act(self.between(self.conv(x.to(memory_format=torch.channels_last)))).flatten(1))


@pytest.mark.parametrize(
    ("between", "chain"),
    [(lambda x: x, True), (torch.relu, False), (lambda x: x + x, False), (lambda x: x.transpose(2, 3), False)],
)
def test_memory_layout_is_no_change_of_values(between, chain):
    model = Laid(between)
    for laid in (model, model.to(memory_format=torch.channels_last)):
        order = execution_order(laid, INPUT)
        assert order.feed_forward == chain
        assert [call.name for call in order.calls] == ["conv", "act", "head"]
