import torch
from torch import nn


def test_size_is_the_papers(build, size):
    # 0.27 million in He et al., table 6.
    assert size(build("resnet20")) == 269_722


def test_resnet20_stages_halve_the_image(build):
    model = build("resnet20")
    out = model.act1(model.norm1(model.conv1(torch.rand(1, 3, 32, 32))))
    shapes = []
    for stage in (model.stage1, model.stage2, model.stage3):
        out = stage(out)
        shapes.append(tuple(out.shape[1:]))
    assert shapes == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_resnet20_shortcut_passes_the_input_through(build):
    block = build("resnet20").stage2[0]
    nn.init.zeros_(block.conv2.weight)
    x = torch.rand(1, 16, 8, 8)
    out = block.eval()(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].abs().sum() == out[:, 24:].abs().sum() == 0


def test_group_norm_replaces_batch_norm(build, size):
    batch, group = build("resnet20", norm="batch", width=4), build("resnet20", norm="group", width=4)
    assert any(isinstance(module, nn.BatchNorm2d) for module in batch.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in group.modules())
    assert not list(group.buffers())
    assert size(batch) == size(group)
