import pytest
from torch import nn

from fedleak.attacks.exact.count import LayerCount, count, weakest
from fedleak.modalities.image import InputSpec
from fedleak.models.zoo import build_model
from fedleak.scenario.schema import Model

CIFAR = InputSpec((3, 32, 32), 10)


def lenet(**parameters):
    return build_model(Model(name="lenet", **parameters), CIFAR, seed=0)


def test_dlg_lenet_by_hand():
    # 5 x 5 kernel, padding 2: stride 2 hits its four parity classes with 3*3, 3*2, 2*3 and 2*2 taps.
    # conv1: 12 * (9 + 6 + 6 + 4) = 300 for each of 3 channels, and 12*16*16 = 3072 forward.
    # conv2: 108, 72, 72 and 48 capped at 64 pixels each: 240 for each of 12 channels, and 12*8*8 = 768 forward.
    # conv3, conv4: 12*25 = 300 capped at 64 pixels.
    # fc: rank 1 of 10 x 769, derivatives summing to zero: 9 + 769 - 1.
    # whole: the cut after conv1 sees 3072 values and 12*75 + 12 = 912 parameters.
    assert count(lenet(), CIFAR, 1) == [
        LayerCount("conv1", "Conv2d", 3072, 3072 + 900),
        LayerCount("conv2", "Conv2d", 3072, 768 + 2880),
        LayerCount("conv3", "Conv2d", 768, 768 + 768),
        LayerCount("conv4", "Conv2d", 768, 768 + 768),
        LayerCount("fc", "Linear", 768, 777),
        LayerCount("(model)", "whole", 3072, 3984),
    ]


@pytest.mark.parametrize(("batch_size", "bound"), [(2, 6060), (4, 7596)])
def test_dlg_lenet_is_not_identifiable_in_batches(batch_size, bound):
    # The cut after conv2: 768 values an image, and 912 + 12*300 + 12 = 4524 parameters up to it.
    assert count(lenet(), CIFAR, batch_size)[-1] == LayerCount("(model)", "whole", batch_size * 3072, bound)
    assert weakest(count(lenet(), CIFAR, batch_size)).slack < 0
    assert weakest(count(lenet(), CIFAR, 1)).slack > 0


def test_relu_hides_half_of_the_forward_equations():
    smooth, relu = (count(lenet(activation=name), CIFAR, 1) for name in ("tanh", "relu"))
    assert smooth[0].equations - relu[0].equations == 3072 // 2
    assert smooth[-2] == relu[-2]


def test_kernel_smaller_than_stride_leaves_pixels_unseen():
    model = nn.Sequential(nn.Conv2d(3, 4, 2, stride=3), nn.Flatten(), nn.Linear(4 * 3 * 3, 10))
    # 9 x 9 pixels, 9 parity classes of 9 pixels, of which a 2 x 2 kernel hits four with one tap each.
    assert count(model, InputSpec((3, 9, 9), 10), 1)[0] == LayerCount("0", "Conv2d", 243, 4 * 9 + 3 * 4 * 4)


def test_classifier_separates_at_most_one_image_less_than_classes():
    spec = InputSpec((3, 8, 8), 10)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    assert count(model, spec, 9)[0].slack == 9 * (9 + 193 - 9) - 9 * 192
    assert count(model, spec, 9)[0].slack > 0
    assert count(model, spec, 10)[0].slack < 0


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))

    def forward(self, x):
        return self.head(x + self.body(x))


def test_residual_network_gets_the_whole_problem_only():
    assert count(Residual(), InputSpec((3, 8, 8), 10), 2) == [LayerCount("(model)", "whole", 384, 84 + 1930)]


def test_pooling_falls_short_and_hides_outputs_from_the_layer_below():
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10))
    convolution, pool = count(model, InputSpec((3, 8, 8), 10), 1)[:2]
    assert pool == LayerCount("1", "MaxPool2d", 1024, 256)
    assert convolution == LayerCount("0", "Conv2d", 192, 256 + 3 * 64)
