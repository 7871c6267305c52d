from dataclasses import replace

import torch
from torch import nn

from fedleak.attacks.base import attacks
from fedleak.attacks.exact.patches import foreseen
from fedleak.attacks.exact.positions import find_positions
from fedleak.data.samples import Samples
from fedleak.modalities.image import InputSpec
from fedleak.models.zoo import build_model
from fedleak.observation import LocalTraining, Observation, observe
from fedleak.scenario.schema import Data, Model

SPEC = InputSpec((3, 32, 32), 10, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def sample(*indices):
    train = Samples(Data()).train
    return train.load(list(indices)), torch.from_numpy(train.labels[list(indices)])


def vit(**parameters):
    return build_model(Model(name="vit", **({"dim": 96, "depth": 2, "heads": 3} | parameters)), SPEC, seed=3)


def attack(observation, model, **parameters):
    return attacks.get("closed-form")(**parameters)([observation], model)[0]


def psnr(result, images):
    return float(-10 * torch.log10((result.images.double().clamp(0, 1) - images.double()).square().mean()))


def after_steps(model, images, labels, optimizer):
    sent = {name: value.detach().clone() for name, value in model.named_parameters()}
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(SPEC.normalize(images)), labels).backward()
        optimizer.step()
    received = {name: value.detach().clone() for name, value in model.named_parameters()}
    local = LocalTraining(len(images), len(images), steps=5, epochs=5, learning_rate=0.01)
    return Observation("weights", sent, received, SPEC, local=local)


def test_five_steps_of_sgd_with_momentum_are_as_one():
    model = vit()
    images, labels = sample(2)
    seen = after_steps(model, images, labels, torch.optim.SGD(model.parameters(), 0.01, momentum=0.9))
    result = attack(seen, model)
    assert psnr(result, images) > 45
    assert result.labels == tuple(labels.tolist())
    assert result.flags == ()


def test_what_weight_decay_took_is_given_back():
    model = vit()
    images, labels = sample(2)
    seen = after_steps(model, images, labels, torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=0.01))
    told = replace(seen, local=replace(seen.local, optimizer={"name": "sgd", "momentum": 0.9, "weight_decay": 0.01}))
    result = attack(told, model)
    assert psnr(result, images) > 45
    assert result.flags == ()
    assert "equations-contradict" in attack(seen, model).flags


def test_adam_contradicts_the_equations_and_that_is_said():
    model = vit()
    images, labels = sample(2)
    result = attack(after_steps(model, images, labels, torch.optim.Adam(model.parameters(), 1e-3)), model)
    assert "equations-contradict" in result.flags


def test_two_images_behind_an_update_said_to_be_of_one_contradict():
    model = vit()
    images, labels = sample(0, 1)
    seen = observe(model, images, labels, input=SPEC, grant=frozenset())
    assert "equations-contradict" in attack(seen, model).flags


def test_two_images_are_refused_with_the_way_out():
    model = vit()
    images, labels = sample(0, 1)
    result = attack(observe(model, images, labels, input=SPEC), model)
    assert result.images is None
    assert "read one image, but 2 are behind the update" in result.error


def test_a_head_of_zeros_says_nothing_of_the_image():
    model = vit()
    nn.init.zeros_(model.head.weight)
    images, labels = sample(0)
    result = attack(observe(model, images, labels, input=SPEC), model)
    assert "'patch_embed.proj.weight' is zero: it says nothing" in result.error


def test_fewer_features_than_patches_is_not_identifiable():
    model = vit(dim=48)
    images, labels = sample(0)
    result = attack(observe(model, images, labels, input=SPEC), model)
    assert "not-identifiable" in result.flags
    assert "fewer than unknowns, so not exact" in foreseen(model, find_positions(model, SPEC), SPEC)


def test_what_is_foreseen_counts_equations_and_tells_rank():
    model = vit()
    said = foreseen(model, find_positions(model, SPEC), SPEC)
    assert "64 patches of 48 values, each value in 96 equations with 64 unknowns; at these weights rank 64" in said
