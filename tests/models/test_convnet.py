from torch import nn


def test_size_is_that_of_convnet_64(build, size):
    # As in Geiping et al.'s code, for 10 classes.
    assert size(build("convnet")) == 2_904_970


def test_convnet_without_norm_has_no_norm(build):
    assert not [name for name, _ in build("convnet", width=4, norm="none").named_parameters() if name.startswith("norm")]


def test_group_norm_replaces_batch_norm(build, size):
    batch, group = build("convnet", norm="batch", width=4), build("convnet", norm="group", width=4)
    assert any(isinstance(module, nn.BatchNorm2d) for module in batch.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in group.modules())
    assert not list(group.buffers())
    assert size(batch) == size(group)
