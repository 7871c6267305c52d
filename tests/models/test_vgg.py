import pytest
import torch
from torch import nn
from torchvision.models import vgg

from fedleak.modalities.image import InputSpec
from fedleak.models import models

IMAGENET = InputSpec((3, 224, 224), 1000)


def shapes(model):
    return [tuple(parameter.shape) for parameter in model.parameters()]


@pytest.mark.parametrize(("norm", "twin"), [("none", vgg.vgg11), ("batch", vgg.vgg11_bn)])
def test_is_torchvisions_on_imagenet(norm, twin):
    with torch.device("meta"):
        assert shapes(models.get("vgg11")(norm=norm).build(IMAGENET)) == shapes(twin())


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_computes_what_torchvisions_computes(build, norm):
    ours = build("vgg11", InputSpec((3, 64, 64), 5), norm=norm, width=64, head="imagenet", hidden=8).eval()
    theirs = (vgg.vgg11 if norm == "none" else vgg.vgg11_bn)(num_classes=5).eval()
    theirs.classifier = nn.Sequential(nn.Linear(512 * 49, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
    with torch.no_grad():
        for target, source in zip(theirs.parameters(), ours.parameters(), strict=True):
            target.copy_(source)
        pixels = torch.rand(2, 3, 64, 64)
        assert torch.allclose(ours(pixels), theirs(pixels), rtol=1e-4, atol=1e-6)


def test_small_images_get_a_small_head(build, size):
    # As VGG-11 with BatchNorm on CIFAR-10 is usually counted: 9.2 million.
    assert size(build("vgg11")) == 9_231_114
    with torch.device("meta"):
        assert models.get("vgg11")().build(InputSpec((3, 64, 64), 10)).fc.in_features == 4 * 512
        assert models.get("vgg11")().build(InputSpec((3, 65, 65), 10)).fc.in_features == 4096


def test_images_too_small_to_be_halved_five_times(build):
    assert build("vgg11", InputSpec((1, 8, 5), 3), width=2).eval()(torch.rand(2, 1, 8, 5)).shape == (2, 3)


def test_there_is_no_dropout_unless_asked_for(build):
    def dropouts(**parameters):
        return [module.p for module in build("vgg11", width=2, **parameters).modules() if isinstance(module, nn.Dropout)]

    assert dropouts() == []
    assert dropouts(dropout=0.3) == [0.3]
    assert dropouts(dropout=0.5, head="imagenet", hidden=4) == [0.5, 0.5]


def test_group_norm_replaces_batch_norm(build, size):
    batch, group = build("vgg11", norm="batch", width=4), build("vgg11", norm="group", width=4)
    assert any(isinstance(module, nn.BatchNorm2d) for module in batch.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in group.modules())
    assert not list(group.buffers())
    assert size(batch) == size(group)
