"""Its terms on pixels, its weights of layers, and its labels: restored first, repeats included."""

import math

import pytest
import torch

from fedleak.attacks.general_dlg import GeneralDLG
from fedleak.attacks.images.priors import total_variation
from fedleak.attacks.labels.base import label_rules
from fedleak.data.samples import CIFAR10_MEAN, Samples
from fedleak.evaluation.images import pair
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import psnr
from fedleak.models import build_model
from fedleak.observation import observe
from fedleak.scenario.schema import Data, Model
from fedleak.threat import Knowledge

SMALL = InputSpec((3, 16, 16), 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
REPEATED = (1, 2, 4, 5)
"""Sample images with the labels 8, 8, 6, 6."""


def seen(*rows):
    train = Samples(Data(image_size=16)).train
    pixels, labels = train.load(list(rows)), torch.from_numpy(train.labels[list(rows)])
    model = build_model(Model(name="lenet"), SMALL, seed=0).eval()
    grant = frozenset({Knowledge.LOCAL_TRAINING, Knowledge.LABELS})
    return observe(model, pixels, labels, input=SMALL, grant=grant), model, pixels, labels


@pytest.mark.parametrize("term", ["clip", "scale"])
def test_nothing_is_charged_inside_the_box(term):
    only = {"tv": 0.0, "clip": 0.0, "scale": 0.0, term: 2.0}
    images = torch.rand(3, *SMALL.shape, generator=torch.Generator().manual_seed(0))
    images[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    assert float(GeneralDLG(**only).prior(images)) == 0
    images[1, 0, 0, 0] = -0.1
    assert float(GeneralDLG(**only).prior(images)) > 0


def test_clip_is_the_squared_distance_to_the_box_and_scale_each_images_largest_excess():
    images = torch.full((2, *SMALL.shape), 0.5)
    images[0, 0, 0, 0], images[0, 0, 0, 1], images[1, 2, 3, 3] = 1.3, -0.1, -0.2
    none = {"tv": 0.0, "clip": 0.0, "scale": 0.0}
    assert float(GeneralDLG(**none | {"clip": 1.0}).prior(images)) == pytest.approx((0.09 + 0.01 + 0.04) / images.numel())
    assert float(GeneralDLG(**none | {"scale": 1.0}).prior(images)) == pytest.approx((0.09 + 0.04) / 2)
    assert float(GeneralDLG(**none | {"tv": 3.0}).prior(images)) == pytest.approx(3 * float(total_variation(images)))


@pytest.mark.parametrize("depth", [0.0, 0.7])
def test_a_tensors_weight_falls_with_its_number(depth):
    attack = GeneralDLG(depth=depth)
    observed = [torch.tensor([3.0, 4.0]), torch.tensor([[1.0]]), torch.tensor([2.0, 0.0])]
    total = sum(math.exp(-depth * number) for number in range(3))
    for number in range(3):
        guessed = [value.clone() for value in observed]
        guessed[number] = torch.zeros_like(guessed[number])
        # All of one tensor missed is a relative distance of 1, whatever the tensor's size.
        assert float(attack.distance(guessed, observed)) == pytest.approx(math.exp(-depth * number) / total)
    assert float(attack.distance(observed, observed)) == 0


def test_a_tensor_without_a_gradient_counts_for_nothing():
    observed = [torch.tensor([3.0, 4.0]), torch.zeros(2)]
    guessed = [observed[0], torch.ones(2, requires_grad=True)]
    distance = GeneralDLG().distance(guessed, observed)
    assert float(distance.detach()) == 0
    [slope] = torch.autograd.grad(distance, guessed[1])
    assert slope.tolist() == [0, 0]


def test_labels_are_those_of_its_own_rule_unless_another_is_named():
    observation, model, _, labels = seen(*REPEATED)
    [own] = GeneralDLG(iterations=1, inner=1)([observation], model)
    assert own.labels == label_rules.get("zero-shot")().restore(observation, model)
    [other] = GeneralDLG(iterations=1, inner=1, labels="row-min")([observation], model)
    assert other.labels == label_rules.get("row-min")().restore(observation, model)
    assert other.labels != own.labels


@pytest.mark.parametrize("rows", [REPEATED, (1, 2, 15, 18), (4, 5, 7, 19, 0, 8, 3, 10)])
def test_repeated_labels_are_restored(rows):
    observation, model, _, labels = seen(*rows)
    assert len(set(labels.tolist())) < len(rows)
    [result] = GeneralDLG(iterations=1, inner=1)([observation], model)
    assert sorted(result.labels) == sorted(labels.tolist())


@pytest.mark.slow
def test_images_with_repeated_labels_come_back():
    observation, model, pixels, _ = seen(*REPEATED)
    [result] = GeneralDLG(iterations=20)([observation], model)
    flat = torch.tensor(CIFAR10_MEAN).view(1, 3, 1, 1).expand_as(pixels)
    found = result.images[pair(result.images, pixels)]
    assert float(psnr(found, pixels).mean()) > float(psnr(flat, pixels).mean()) + 6
