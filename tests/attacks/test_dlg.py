from dataclasses import replace

import pytest
import torch

from fedleak.attacks.base import attacks
from fedleak.attacks.dlg import DLG
from fedleak.client.training import gradient_of, step
from fedleak.data.samples import CIFAR10_MEAN, CIFAR10_STD, Samples
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import mse
from fedleak.models import build_model
from fedleak.observation import LocalTraining, observe
from fedleak.scenario.schema import Data, Model

INPUT = InputSpec((3, 32, 32), 10, CIFAR10_MEAN, CIFAR10_STD)


def case(index, **model):
    train = Samples(Data()).train
    images, labels = train.load([index]), torch.from_numpy(train.labels[[index]])
    network = build_model(Model(name="lenet", **model), INPUT, index).eval()
    return images, int(labels), observe(network, images, labels, input=INPUT), network


@pytest.mark.slow
@pytest.mark.parametrize("index", [1, 2])
@pytest.mark.parametrize("name", ["dlg", "idlg"])
def test_sample_image_is_rebuilt_with_its_label(name, index):
    images, label, observation, network = case(index)
    [result] = attacks.get(name)()([observation], network, seed=index)
    assert float(mse(result.images, images)) < 1e-3
    assert result.labels == (label,)
    assert result.stop_reason == "converged"
    assert result.loss <= 1e-8
    assert result.flags == ()


def test_frequencies_descend_faster_than_pixels():
    images, _, observation, network = case(1)
    errors = {}
    for coordinates in ("frequency", "pixel"):
        [result] = DLG(coordinates=coordinates, iterations=3, restarts=1)([observation], network)
        errors[coordinates] = float(mse(result.images, images))
    assert errors["frequency"] < 0.1 * errors["pixel"]


def test_pixels_start_from_normal_model_inputs_and_frequencies_from_nearly_flat_grey():
    generator = torch.Generator().manual_seed(0)
    like = torch.zeros(())
    for coordinates, mean, spread in (("pixel", INPUT.mean, INPUT.std), ("frequency", (0.5,) * 3, None)):
        attack = DLG(coordinates=coordinates)
        images = attack.coordinates(INPUT, like).decode(attack.start((4, 3, 32, 32), generator))
        assert images.mean(dim=(0, 2, 3)).tolist() == pytest.approx(list(mean), abs=0.05)
        if spread:
            assert images.std(dim=(0, 2, 3)).tolist() == pytest.approx(list(spread), rel=0.05)
        else:
            assert float(images.std()) < 0.05


def test_paper_settings_are_the_defaults():
    group = DLG().optimiser([torch.zeros(1, requires_grad=True)]).param_groups[0]
    assert (group["lr"], group["max_iter"], group["history_size"]) == (1.0, 20, 100)
    assert DLG().config.iterations == 300


def several_steps(count, rate=0.1):
    """Return what a server sees of one image a step, trained on in turn."""
    train = Samples(Data(image_size=16)).train
    images, labels = train.load(list(range(count))), torch.from_numpy(train.labels[:count])
    spec = InputSpec((3, 16, 16), 10, CIFAR10_MEAN, CIFAR10_STD)
    network = build_model(Model(name="lenet"), spec, 0).eval()
    seen = observe(network, images, labels, input=spec)
    client = build_model(Model(name="lenet"), spec, 0).eval()
    for at in range(count):
        gradient = gradient_of(client, spec.normalize(images[at : at + 1]), labels[at : at + 1])[1]
        step(dict(client.named_parameters()), gradient, rate, seen.parameters)
    update = {name: value.detach() for name, value in client.named_parameters()}
    local = LocalTraining(count, 1, count, learning_rate=rate, mode="eval")
    return replace(seen, kind="weights", update=update, local=local), network


def test_a_start_that_slows_down_far_from_the_update_ends_and_of_several_local_steps_it_is_the_only_one():
    observation, network = several_steps(4)
    [stuck] = DLG(iterations=40, inner=10)([observation], network)
    [on] = DLG(iterations=12, inner=10, stuck=None, restarts=1)([observation], network)
    assert stuck.stop_reason == "flat"
    assert stuck.loss > 1e-3
    assert 9 <= stuck.iterations < 40
    assert on.stop_reason == "iterations"
    as_gradient = replace(observation, kind="gradient", update=observation.gradient())
    [again] = DLG(iterations=40, inner=10)([as_gradient], network)
    assert again.iterations > stuck.iterations, "of a gradient nothing ends early"
