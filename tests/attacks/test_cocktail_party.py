import pytest

from fedleak.attacks.base import attacks
from fedleak.data.samples import CIFAR10_MEAN
from fedleak.evaluation.images import pair
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import psnr
from fedleak.models.zoo import build_model
from fedleak.observation import observe
from fedleak.scenario.schema import Model

CIFAR = InputSpec((3, 32, 32), 10)


def run(observation, model):
    return attacks.get("cocktail-party")()([observation], model)[0]


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
def test_sixteen_images_far_above_the_mean_image(mlp, batch, activation):
    import torch

    model, (images, labels) = mlp(activation=activation), batch(0, 16)
    result = run(observe(model, images, labels, input=CIFAR), model)
    quality = psnr(result.images[pair(result.images, images)], images)
    mean_image = psnr(torch.tensor(CIFAR10_MEAN).view(1, 3, 1, 1).expand_as(images), images)
    assert float(quality.mean()) > float(mean_image.mean()) + 6


def test_without_a_bias_the_scale_is_a_natural_images(mlp, batch):
    model, (images, labels) = mlp(bias=False), batch(0, 1)
    result = run(observe(model, images, labels, input=CIFAR), model)
    assert float(psnr(result.images, images)) > 14


def test_convolutions_are_refused(batch):
    images, labels = batch(0, 2)
    lenet = build_model(Model(name="lenet"), CIFAR, seed=0).eval()
    assert "nn.Linear on the flat image" in run(observe(lenet, images, labels, input=CIFAR), lenet).error
