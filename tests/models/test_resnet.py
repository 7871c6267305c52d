import pytest
import torch
from torch import nn

from fedleak.modalities.image import InputSpec


@pytest.mark.parametrize(("name", "expected"), [("resnet18", 11_173_962), ("resnet50", 23_520_842)])
def test_size_with_the_small_stem(build, size, name, expected):
    assert size(build(name)) == expected


@pytest.mark.parametrize(
    ("side", "stem", "small"),
    [(64, "auto", True), (65, "auto", False), (32, "imagenet", False), (65, "cifar", True)],
)
def test_resnet_stem(build, side, stem, small):
    model = build("resnet18", InputSpec((3, side, side), 10), stem=stem)
    assert model.conv1.kernel_size == ((3, 3) if small else (7, 7))
    assert isinstance(model.maxpool, nn.Identity if small else nn.MaxPool2d)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_resnet_takes_grey_images(build, stem):
    assert build("resnet18", InputSpec((1, 32, 32), 10), stem=stem)(torch.rand(2, 1, 32, 32)).shape == (2, 10)


def test_group_norm_replaces_batch_norm(build, size):
    batch, group = build("resnet18", norm="batch"), build("resnet18", norm="group")
    assert any(isinstance(module, nn.BatchNorm2d) for module in batch.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in group.modules())
    assert not list(group.buffers())
    assert size(batch) == size(group)
