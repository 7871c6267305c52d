"""Second derivatives: which kernels have one, and which layer has none."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import fedleak
from fedleak.modalities.image import InputSpec
from fedleak.models.second import no_second_derivative, twice_differentiable
from fedleak.observation import observe

INPUT = InputSpec((3, 8, 8), 5)


class Attention(nn.Module):
    """One head on the rows of an image, by PyTorch's own function."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, x):
        rows = self.embed(x.permute(0, 2, 1, 3).flatten(2))[:, None]
        return self.head(functional.scaled_dot_product_attention(rows, rows, rows)[:, 0].mean(1))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.embed, self.layers, self.head = nn.Linear(24, 16), nn.TransformerEncoder(layer, 1), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.layers(self.embed(x.permute(0, 2, 1, 3).flatten(2))).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rows, self.head = kind(24, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.rows(x.permute(0, 2, 1, 3).flatten(2))[0][:, -1])


class Inline(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(192, 5)

    def forward(self, x):
        return functional.hardsigmoid(self.head(x.flatten(1)))


def twice(model):
    inputs = torch.rand(2, 3, 8, 8, requires_grad=True)
    loss = functional.cross_entropy(model(inputs), torch.tensor([0, 1]))
    gradient = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in gradient), inputs)


def test_fused_attention_has_no_second_derivative_and_the_block_takes_what_has():
    model = Attention()
    with pytest.raises(RuntimeError, match="derivative for aten::_scaled_dot_product"):
        twice(model)
    with twice_differentiable(model):
        assert bool(twice(model)[0].isfinite().all())
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    ("layer", "named"), [(nn.Hardsigmoid(), "Hardsigmoid"), (nn.Hardswish(inplace=True), None), (nn.SiLU(inplace=True), None)]
)
def test_the_layer_is_named(layer, named):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 9), layer, nn.Linear(9, 5)).train()
    found = no_second_derivative(model, INPUT)
    assert (found.layer if found else None) == (f"'2' ({named})" if named else None)
    if found:
        assert found.reason == "derivative for aten::hardsigmoid_backward is not implemented"
    assert model.training


def test_a_function_in_forward_is_said_to_be_one():
    assert no_second_derivative(Inline(), INPUT).layer == "a function in forward()"


@pytest.mark.parametrize(
    "make", [Attention, Encoder, lambda: Recurrent(nn.LSTM), lambda: Recurrent(nn.GRU), lambda: Recurrent(nn.RNN)]
)
def test_attention_and_recurrent_layers_can_be_differentiated(make):
    assert no_second_derivative(make(), INPUT) is None


@pytest.mark.parametrize(
    "make", [Attention, Encoder, lambda: Recurrent(nn.LSTM), lambda: Recurrent(nn.GRU), lambda: Recurrent(nn.RNN)]
)
def test_they_are_attacked_several_starts_at_a_time_or_one_by_one(make):
    torch.manual_seed(1)
    model = make().eval()
    images = torch.rand(1, 3, 8, 8)
    observation = observe(model, images, torch.tensor([2]), input=INPUT)
    results = [
        fedleak.attack("dlg", labels="idlg", restarts=2, iterations=3, together=together)([observation], model)[0]
        for together in (None, 1)
    ]
    assert all(result.error is None and result.loss < result.initial_loss for result in results)
    torch.testing.assert_close(results[0].images, results[1].images, atol=1e-3, rtol=1e-3)
