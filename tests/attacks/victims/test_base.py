from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedleak.attacks.victims.base import Victim
from fedleak.attacks.victims.said import first_step_of
from fedleak.client.training import gradient_of
from fedleak.errors import AttackError
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import LocalTraining, observe
from fedleak.scenario.schema import Model
from fedleak.seeding import Seed

INPUT = InputSpec((3, 16, 16), 10, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
CPU = torch.device("cpu")


class Noisy(nn.Module):
    """Random in train mode without being a dropout layer."""

    def forward(self, x):
        return functional.dropout(x, 0.5, self.training)


def normed(*extra):
    with Seed(4).isolated():
        layers = [nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), *extra, nn.Linear(294, 10)]
        return nn.Sequential(*layers)


def batch(count=3):
    generator = torch.Generator().manual_seed(2)
    return torch.rand(count, *INPUT.shape, generator=generator), torch.arange(count) + 3


def seen(model):
    return observe(model, *batch(), input=INPUT)


def gradient(model, observation, labels=None):
    images, true = batch()
    victim = Victim(model, observation, CPU)
    targets = functional.one_hot(true, 10).float() if labels is None else labels
    found = victim.gradient(victim.input.normalize(images), targets)
    return dict(zip(victim.parameters, found, strict=True))


def close(a, b):
    assert a.keys() == b.keys()
    return all(torch.allclose(a[name], b[name], rtol=1e-4, atol=1e-6) for name in a)


@pytest.mark.parametrize("name", ["lenet", "resnet20", "vit"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_gradient_at_the_truth_is_the_clients_own(name, mode):
    model = build_model(Model(name=name), INPUT, 0).train(mode == "train")
    observation = seen(model)
    images, labels = batch()
    _, clients = gradient_of(model, INPUT.normalize(images), labels)
    assert close(gradient(model, observation), clients)


def test_without_normalisation_it_is_another():
    model = build_model(Model(name="lenet"), INPUT, 0)
    plain = replace(seen(model), input=InputSpec(INPUT.shape, 10))
    assert not close(gradient(model, plain), seen(model).update)


def test_soft_labels_are_mixtures_of_hard_ones():
    model = build_model(Model(name="lenet"), INPUT, 0)
    hard = [functional.one_hot(torch.full((3,), label), 10).float() for label in (1, 2)]
    mixed = gradient(model, seen(model), 0.3 * hard[0] + 0.7 * hard[1])
    first, second = (gradient(model, seen(model), one) for one in hard)
    assert close(mixed, {name: 0.3 * first[name] + 0.7 * second[name] for name in first})


def test_gradient_can_be_differentiated_by_images_and_labels():
    model = build_model(Model(name="lenet"), InputSpec((3, 8, 8), 10), 0)
    small = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    victim = Victim(model, observe(model, small, torch.tensor([1])), CPU, torch.float64)
    image, logits = small.double().requires_grad_(), torch.zeros(1, 10, dtype=torch.float64, requires_grad=True)
    total = sum(value.square().sum() for value in victim.gradient(image, logits.softmax(-1)))
    by_image, by_logits = torch.autograd.grad(total, [image, logits])
    step = 1e-6
    for where, slope in ((image, by_image), (logits, by_logits)):
        with torch.no_grad():
            moved = where.clone()
            moved.view(-1)[5] += step
        values = [moved if where is image else image, (moved if where is logits else logits).softmax(-1)]
        changed = sum(value.square().sum() for value in victim.gradient(*values))
        assert float((changed - total).detach()) / step == pytest.approx(float(slope.view(-1)[5]), rel=1e-3)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_running_statistics_stay_as_sent_and_the_mode_is_the_clients(mode):
    model = normed().train(mode == "train")
    observation = seen(model)
    images, _ = batch()
    victim = Victim(model, observation, CPU)
    before = {name: value.clone() for name, value in observation.buffers.items()}
    first, second = victim.logits(INPUT.normalize(images)), victim.logits(INPUT.normalize(images))
    assert torch.equal(first, second)
    assert all(torch.equal(before[name], value) for name, value in observation.buffers.items())
    assert torch.allclose(first, model(INPUT.normalize(images)), atol=1e-6)


def test_unknown_mode_is_eval():
    model = normed().train()
    unknown = replace(seen(model), local=None)
    images, _ = batch()
    assert torch.allclose(Victim(model, unknown, CPU).logits(images), model.eval()(images), atol=1e-6)


@pytest.mark.parametrize("layer", [nn.Dropout(), nn.AlphaDropout(), Noisy()], ids=lambda layer: type(layer).__name__)
def test_dropout_is_off_and_the_model_given_keeps_its_mode(layer):
    model = normed(layer, nn.Sequential(nn.Identity(), layer)).train()
    images, _ = batch()
    victim = Victim(model, seen(model), CPU)
    assert torch.equal(victim.logits(images), victim.logits(images))
    assert torch.allclose(victim.logits(images), Victim(normed().train(), seen(normed()), CPU).logits(images), atol=1e-6)
    assert all(module.training for module in model.modules())


def test_parameters_are_the_observations_not_the_models():
    sent, other = normed(), normed()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    assert close(gradient(other, seen(sent)), gradient(sent, seen(sent)))


def test_tensors_are_matched_by_name():
    model = normed()
    observation = seen(model)
    turned = replace(observation, update=dict(reversed(observation.update.items())))
    for mine, theirs in zip(Victim(model, turned, CPU).observed, observation.update.values(), strict=True):
        assert torch.equal(mine, theirs)


def test_observation_is_not_marked_as_requiring_gradients():
    model = normed()
    observation = seen(model)
    gradient(model, observation)
    assert not any(value.requires_grad for value in observation.parameters.values())


def test_weights_are_read_as_a_gradient():
    model = normed()
    observation = seen(model)
    moved = {name: value - 0.5 * observation.update[name] for name, value in observation.parameters.items()}
    weights = replace(observation, kind="weights", update=moved, local=LocalTraining(3, 3, learning_rate=0.5))
    for mine, true in zip(Victim(model, weights, CPU).observed, observation.update.values(), strict=True):
        assert torch.allclose(mine, true, atol=1e-6)


@pytest.mark.parametrize(("value", "message"), [(0.0, "zero"), (float("nan"), "finite")])
def test_an_update_that_says_nothing_is_refused(value, message):
    model = normed()
    observation = seen(model)
    empty = replace(observation, update={name: torch.full_like(tensor, value) for name, tensor in observation.update.items()})
    with pytest.raises(AttackError, match=message):
        Victim(model, empty, CPU)


def test_a_parameter_that_the_loss_does_not_reach_has_a_zero_gradient():
    model = normed()
    model.register_parameter("idle", nn.Parameter(torch.ones(3)))
    observation = seen(normed())
    observation = replace(
        observation,
        parameters={**observation.parameters, "idle": torch.ones(3)},
        update={**observation.update, "idle": torch.zeros(3)},
    )
    assert torch.equal(gradient(model, observation)["idle"], torch.zeros(3))


def test_one_step_of_adam_says_small_gradients_and_bounds_large_ones() -> None:
    model = nn.Linear(4, 3)
    gradient = torch.tensor([[1e-9, -2e-8, 3e-7, 0.0], [-1e-5, 1e-3, -0.5, 2.0], [5e-9, -5e-9, 1e-8, -1e-8]])
    named = {name: value.detach().clone() for name, value in model.named_parameters()}
    seen = observe(nn.Sequential(nn.Flatten(), model), torch.rand(1, 1, 2, 2), torch.tensor([1]))
    seen = replace(seen, parameters={"1.weight": named["weight"], "1.bias": named["bias"]})
    value = named["weight"].clone().requires_grad_()
    optimiser = torch.optim.Adam([value], lr=1e-2)
    value.grad = gradient.clone()
    optimiser.step()
    local = LocalTraining(1, 1, learning_rate=1e-2, optimizer={"name": "adam"})
    update = {"1.weight": value.detach(), "1.bias": named["bias"]}
    found = first_step_of(replace(seen, kind="weights", update=update, local=local))
    assert found is not None
    said, bounded = found.gradient["1.weight"], found.bounded["1.weight"]
    assert bool(bounded[gradient.abs() > 1e-2].all())
    assert not bool(bounded[gradient.abs() < 1e-6].any())
    torch.testing.assert_close(said[~bounded], gradient[~bounded], rtol=0.15, atol=1e-11)
    assert bool((said[bounded].sign() == gradient[bounded].sign()).all())
    assert bool((said[bounded].abs() <= gradient[bounded].abs()).all())
