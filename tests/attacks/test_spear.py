from dataclasses import replace

import pytest
import torch
from torch import nn

from fedleak.attacks.base import attacks
from fedleak.evaluation.images import pair
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import psnr
from fedleak.models.zoo import build_model
from fedleak.observation import LocalTraining, observe
from fedleak.scenario.schema import Model

CIFAR = InputSpec((3, 32, 32), 10)


def run(observation, model, **parameters):
    return attacks.get("spear")(**parameters)([observation], model)[0]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("seed", [0, 1])
def test_batches_are_exact_with_their_labels(mlp, batch, size, seed):
    model, (images, labels) = mlp(seed=seed), batch(seed * size, size)
    result = run(observe(model, images, labels, input=CIFAR), model)
    order = pair(result.images, images)
    assert float(psnr(result.images[order], images).min()) > 100
    assert [result.labels[index] for index in order] == labels.tolist()
    assert result.flags == ()
    assert result.loss < 1e-5


@pytest.mark.slow
def test_sixteen_images_on_a_wider_layer(mlp, batch):
    model, (images, labels) = mlp(512), batch(0, 16)
    result = run(observe(model, images, labels, input=CIFAR), model)
    assert float(psnr(result.images[pair(result.images, images)], images).min()) > 100


def test_what_it_does_not_separate_is_flagged_and_shows_in_the_loss(mlp, batch):
    model, (images, labels) = mlp(32), batch(0, 16)
    result = run(observe(model, images, labels, input=CIFAR), model, iterations=2)
    assert result.flags == ("mixed-images",)
    assert result.loss > 1e-3


def test_noise_is_refused(mlp, batch):
    model, (images, labels) = mlp(), batch(0, 4)
    seen = observe(model, images, labels, input=CIFAR)
    drawn = {name: torch.randn(value.shape, generator=torch.Generator().manual_seed(1)) for name, value in seen.update.items()}
    result = run(replace(seen, update=drawn), model)
    assert result.images is None
    assert "no short sum of images" in result.error


@pytest.mark.parametrize(
    ("parameters", "words"), [({"activation": "sigmoid"}, "needs ReLU"), ({"bias": False}, "has no bias")], ids=str
)
def test_networks_without_bias_or_relu_are_refused(mlp, batch, parameters, words):
    model, (images, labels) = mlp(**parameters), batch(0, 2)
    assert words in run(observe(model, images, labels, input=CIFAR), model).error


def test_convolutions_and_several_steps_are_refused(mlp, batch):
    images, labels = batch(0, 2)
    lenet = build_model(Model(name="lenet"), CIFAR, seed=0).eval()
    assert "nn.Linear on the flat image" in run(observe(lenet, images, labels, input=CIFAR), lenet).error
    pooled = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(768, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    assert "nn.Linear on the flat image" in run(observe(pooled, images, labels, input=CIFAR), pooled).error
    model = mlp()
    seen = replace(observe(model, images, labels, input=CIFAR), kind="weights", local=LocalTraining(2, 1, steps=2))
    assert "2 local steps" in run(seen, model).error
