from dataclasses import replace

import pytest
import torch

from fedleak.attacks.base import attacks
from fedleak.attacks.exact.drift import gradient_of
from fedleak.data.samples import Samples
from fedleak.modalities.image import InputSpec
from fedleak.models.zoo import build_model
from fedleak.observation import LocalTraining, observe
from fedleak.scenario.schema import Data, Model

CIFAR = InputSpec((3, 32, 32), 10)


def after_steps(index, rate, steps=5):
    train = Samples(Data()).train
    image, label = train.load([index]), torch.from_numpy(train.labels[[index]])
    model = build_model(Model(name="lenet", activation="tanh"), CIFAR, seed=index).eval()
    seen = observe(model, image, label, input=CIFAR)
    weights, gradient = dict(seen.parameters), gradient_of(model, {})
    for _ in range(steps):
        change = gradient(weights, image[0], int(label))
        weights = {name: value - rate * change[name] for name, value in weights.items()}
    local = LocalTraining(1, 1, steps, steps, rate, "eval")
    return replace(seen, kind="weights", update=weights, local=local), model, image


def quality(found, image):
    return float(-10 * torch.log10((found.clamp(0, 1) - image).square().mean()))


@pytest.mark.parametrize("index", [0, *(pytest.param(index, marks=pytest.mark.slow) for index in (7, 16))])
def test_one_image_after_five_steps_is_solved_beyond_70_db(index):
    seen, model, image = after_steps(index, 0.01)
    [result] = attacks.get("closed-form")()([seen], model)
    assert quality(result.images, image) >= 70
    assert result.iterations > 1


def test_the_budget_ends_the_passes_with_the_best_so_far():
    seen, model, _ = after_steps(0, 0.01)
    [result] = attacks.get("closed-form")(budget_seconds=1e-6)([seen], model)
    assert result.images is not None
    assert result.iterations == 1
