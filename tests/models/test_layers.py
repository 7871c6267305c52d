import pytest
import torch

from fedleak.models.layers import activation, norm


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("sigmoid", torch.sigmoid),
        ("tanh", torch.tanh),
        ("relu", lambda x: x.clamp(min=0)),
        ("leaky-relu", lambda x: torch.where(x > 0, x, 0.01 * x)),
        ("elu", lambda x: torch.where(x > 0, x, x.exp() - 1)),
        ("gelu", lambda x: x * torch.distributions.Normal(0, 1).cdf(x)),
    ],
)
def test_activations(name, function):
    x = torch.linspace(-3, 3, 13)
    assert torch.allclose(activation(name)(x), function(x), atol=1e-6)


@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (4, 4), (12, 4), (7, 1)])
def test_groups_divide_the_channels(channels, groups):
    assert norm("group", channels).num_groups == groups
