from dataclasses import replace

import torch
from torch.nn import functional

from fedleak.attacks.base import attacks
from fedleak.evaluation.images import pair
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import psnr
from fedleak.observation import LocalTraining, observe

CIFAR = InputSpec((3, 32, 32), 10)


def run(observation, model):
    return attacks.get("analytic")()([observation], model)[0]


def test_one_image_with_any_activation(mlp, batch):
    for activation in ("relu", "sigmoid", "tanh"):
        model, (images, labels) = mlp(activation=activation), batch(3, 1)
        result = run(observe(model, images, labels, input=CIFAR, grant=frozenset()), model)
        assert float(psnr(result.images, images)) > 100
        assert result.labels == tuple(labels.tolist())
        assert result.loss < 1e-5


def test_one_image_after_twenty_local_steps(mlp, batch):
    model, (images, labels) = mlp(), batch(5, 1)
    seen = observe(model, images, labels, input=CIFAR)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(20):
        optimiser.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimiser.step()
    update = {name: value.detach().clone() for name, value in model.named_parameters()}
    local = LocalTraining(1, 1, steps=20, epochs=20, learning_rate=0.05, mode="eval")
    result = run(replace(seen, kind="weights", update=update, local=local), model)
    # Weights are rounded to float32 at their own size, not at the update's.
    assert float(psnr(result.images, images)) > 80
    assert result.loss is None


def test_samples_with_units_of_their_own_are_exact_and_the_rest_is_flagged(mlp, batch):
    model, (images, labels) = mlp(), batch(0, 8)
    result = run(observe(model, images, labels, input=CIFAR), model)
    quality = psnr(result.images[pair(result.images, images)], images)
    assert 1 <= int((quality > 100).sum()) < 8
    assert result.flags == ("mixed-images",)


def test_a_layer_without_bias_is_refused(mlp, batch):
    model, (images, labels) = mlp(bias=False), batch(0, 1)
    assert "has no bias" in run(observe(model, images, labels, input=CIFAR), model).error
