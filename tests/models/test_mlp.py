from torch import nn


def test_size(build, size):
    assert size(build("mlp")) == 3072 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10


def test_mlp_without_hidden_layers_is_linear(build, size):
    model = build("mlp", hidden=[])
    assert size(model) == 3072 * 10 + 10
    assert [type(module) for module in model] == [nn.Flatten, nn.Linear]
