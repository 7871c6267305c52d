import pytest

from fedleak.attacks.base import attacks
from fedleak.evaluation.images import pair
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import psnr
from fedleak.models.zoo import build_model
from fedleak.observation import observe
from fedleak.scenario.schema import Model

CIFAR = InputSpec((3, 32, 32), 10)


def run(observation, model):
    return attacks.get("exact")()([observation], model)[0]


@pytest.mark.parametrize(("size", "width", "by"), [(1, 256, "analytic: "), (8, 256, "closed-form: "), (16, 512, "spear: ")])
def test_the_attack_that_fits_is_named(mlp, batch, size, width, by):
    model, (images, labels) = mlp(width), batch(0, size)
    result = run(observe(model, images, labels, input=CIFAR), model)
    assert result.method.startswith(by)
    assert float(psnr(result.images[pair(result.images, images)], images).min()) > 100


def test_convolutions_go_to_the_closed_form(batch):
    model, (images, labels) = build_model(Model(name="lenet", activation="tanh"), CIFAR, seed=0).eval(), batch(0, 1)
    result = run(observe(model, images, labels, input=CIFAR), model)
    assert result.method.startswith("closed-form: ")
    assert float(psnr(result.images, images)) > 100


def test_where_none_applies_each_says_why(batch):
    model, (images, labels) = build_model(Model(name="resnet20"), CIFAR, seed=0).eval(), batch(0, 2)
    error = run(observe(model, images, labels, input=CIFAR), model).error
    for name in ("analytic", "closed-form", "spear", "cocktail-party"):
        assert f"{name}: " in error
