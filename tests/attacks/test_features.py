"""What a classifier's update tells by itself: labels, features, and the public image nearest to them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import fedleak
from fedleak.data.samples import Samples
from fedleak.errors import AttackError
from fedleak.modalities.image import InputSpec
from fedleak.observation import LocalTraining, Observation, observe
from fedleak.scenario.schema import Data

SPEC = InputSpec((3, 32, 32), 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
TRAIN = Samples(Data()).train
PUBLIC = TRAIN.load(list(range(20)))


def network(bias=True):
    torch.manual_seed(2)
    body = nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.Tanh(), nn.Flatten(), nn.Linear(392, 48), nn.Sigmoid())
    return nn.Sequential(*body, nn.Linear(48, 10, bias=bias)).eval()


def batch(*indices):
    return TRAIN.load(list(indices)), torch.from_numpy(TRAIN.labels[list(indices)])


def seen(model, *indices, surrogate=PUBLIC, **changes):
    images, labels = batch(*indices)
    return replace(observe(model, images, labels, input=SPEC, payload=["5.*"]), surrogate=surrogate, **changes)


def features(model, images):
    with torch.no_grad():
        return model[:5](SPEC.normalize(images)).double()


def told(observation, model):
    [result] = fedleak.attack("features")([observation], model)
    assert result.error is None
    return result


@pytest.mark.parametrize("bias", [True, False])
def test_one_images_features_are_exact_and_tell_it_from_all_public_ones(bias):
    model = network(bias)
    for index in (0, 7, 13):
        result = told(seen(model, index), model)
        images, labels = batch(index)
        assert result.labels == tuple(labels.tolist())
        torch.testing.assert_close(result.images, images, atol=1e-5, rtol=0)
        assert "those of one image" in result.method
        assert result.loss < 1e-5


def test_after_several_steps_the_direction_is_still_exact():
    model = network()
    images, labels = batch(4)
    head = nn.Linear(48, 10)
    head.load_state_dict(model[5].state_dict())
    for _ in range(5):
        loss = nn.functional.cross_entropy(head(features(model, images).float()), labels)
        gradient = torch.autograd.grad(loss, list(head.parameters()))
        with torch.no_grad():
            for value, step in zip(head.parameters(), gradient, strict=True):
                value -= 0.1 * step
    first = seen(model, 4)
    update = {"5.weight": head.weight.detach(), "5.bias": head.bias.detach()}
    local = LocalTraining(1, 1, 5, 5, 0.1, "eval")
    result = told(replace(first, kind="weights", update=update, local=local), model)
    torch.testing.assert_close(result.images, images, atol=1e-5, rtol=0)
    assert result.labels == tuple(labels.tolist())


def test_a_batch_of_fewer_images_than_classes_is_told_apart():
    model = network()
    result = told(seen(model, 0, 1, 2), model)
    images, labels = batch(0, 1, 2)
    assert "those of each of 3 images" in result.method
    order = sorted(range(3), key=lambda row: result.labels[row])
    expected = sorted(range(3), key=lambda row: labels[row])
    torch.testing.assert_close(result.images[order], images[expected], atol=1e-5, rtol=0)


def test_of_a_large_batch_class_means_are_told_and_said_to_be_rough():
    model = network()
    result = told(seen(model, *range(16)), model)
    assert "roughly the mean of each label's images" in result.method
    assert result.loss is None
    assert len(result.labels) == len(result.images) == 16


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"surrogate": None}, "no public images are granted"),
        ({"kept_known": False}, "the weights that did not travel are not known"),
    ],
)
def test_without_what_shows_an_image_grey_stands_for_it(changes, said):
    model = network()
    result = told(seen(model, 3, **changes), model)
    assert said in result.method
    assert torch.equal(result.images, torch.full((1, 3, 32, 32), 0.5))
    assert result.labels == (int(batch(3)[1]),)


def test_where_the_classifier_does_not_travel_it_says_so(tmp_path):
    model = network()
    images, labels = batch(0)
    observation = observe(model, images, labels, input=SPEC, payload=["0.*"])
    observation.save(tmp_path / "capture")
    again = Observation.load(tmp_path / "capture")
    assert (again.kept, again.kept_known) == (observation.kept, True)
    [result] = fedleak.attack("features")([again], model)
    assert "the update of the classifier '5' does not travel" in result.error
    with pytest.raises(AttackError, match="'closed-form' reads the update of every parameter, and that of '3.weight'"):
        fedleak.attack("closed-form")([again], model)
