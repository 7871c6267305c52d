from dataclasses import replace

from fedleak.attacks.auto import plan
from fedleak.attacks.base import attacks
from fedleak.evaluation.metrics import psnr
from fedleak.models.zoo import build_model
from fedleak.observation import LocalTraining, observe
from fedleak.scenario import Model
from tests.attacks.test_spear import CIFAR, batch, mlp


def lenet(**parameters):
    return build_model(Model(name="lenet", **parameters), CIFAR, seed=0).eval()


def planned(model, images, steps=1):
    return plan(model, CIFAR, "weights" if steps > 1 else "gradient", LocalTraining(images, images, steps=steps))


def test_plans_follow_the_count_the_activations_and_the_steps():
    assert planned(mlp(), 8).names[0] == "exact"
    assert planned(lenet(), 4).names[0] == "natural"
    assert "equations fall short" in planned(lenet(), 4).reason
    assert "smooth activations (Sigmoid)" in planned(lenet(), 4).reason
    assert "natural" not in planned(lenet(activation="relu"), 4).names
    assert planned(lenet(), 4, steps=4).names[0] == "natural"
    assert "4 local steps" in planned(lenet(), 4, steps=4).reason
    assert planned(lenet(), 4).names[-1] == "inverting-gradients"


def test_an_exact_case_is_solved_and_says_how():
    model, (images, labels) = lenet(activation="tanh"), batch(0, 1)
    [result] = attacks.get("auto")()([observe(model, images, labels, input=CIFAR)], model)
    assert result.method.startswith("closed-form: ")
    assert "equations suffice" in result.method
    assert float(psnr(result.images, images)) > 100


def test_after_a_failure_the_next_gets_its_turn_and_the_method_says_so():
    model, (images, labels) = lenet(activation="tanh"), batch(0, 1)
    seen = observe(model, images, labels, input=CIFAR)
    # The classifier's gradient disturbed beyond rank 1: the closed form refuses it.
    update = {name: value + 0.3 * value.roll(1, 0) * value.sign() for name, value in seen.update.items()}
    [result] = attacks.get("auto")(iterations=3)([replace(seen, update=update)], model)
    assert result.images is not None
    assert "exact failed" in result.method
