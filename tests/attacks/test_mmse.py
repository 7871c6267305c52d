"""The attack ``mmse`` and what it is made of, against the slow obvious ways."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fedleak
from fedleak.attacks.estimation.ensembles import around, missed
from fedleak.attacks.estimation.leaves import dead_leaves
from fedleak.attacks.estimation.network import ClampedNetwork
from fedleak.attacks.estimation.ridge import LAMBDAS, estimate, whitening
from fedleak.attacks.estimation.sample_gradients import SampleGradients
from fedleak.attacks.estimation.signals import batch_signals
from fedleak.attacks.images.synthetic import synthetic_images
from fedleak.data.samples import Samples
from fedleak.evaluation.images import pair
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import psnr
from fedleak.models import build_model
from fedleak.observation import LocalTraining, observe
from fedleak.scenario.schema import Data, Model
from fedleak.seeding import Seed

INPUT = InputSpec((3, 16, 16), 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
ODD = nn.Sequential(
    nn.Conv2d(3, 8, 3, stride=2, padding=2, dilation=2, padding_mode="reflect"),
    nn.GroupNorm(2, 8),
    nn.ReLU(),
    nn.Conv2d(8, 12, (3, 2), groups=4, padding="same", bias=False),
    nn.ReLU(),
    nn.Flatten(2),
    nn.LayerNorm(64),
    nn.Linear(64, 5),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(60, 10),
)


def sample(*indices: int) -> tuple[torch.Tensor, torch.Tensor]:
    train = Samples(Data(image_size=16)).train
    return train.load(list(indices)), torch.from_numpy(train.labels[list(indices)])


@pytest.mark.parametrize("entries", [7, 100_000])
@pytest.mark.parametrize("name", ["resnet20", "odd", "train"])
def test_sample_gradients_are_autograds(name, entries):
    model = ODD if name == "odd" else build_model(Model(name="resnet20", width=4), INPUT, seed=0)
    model = model.train(name == "train")
    images, labels = sample(0, 1)
    observation = observe(model, images[:1], labels[:1], input=INPUT)
    network = ClampedNetwork(model, observation, torch.device("cpu"))
    gradients = SampleGradients(network, entries, torch.Generator().manual_seed(0))
    signals = torch.randn(2, 10, generator=torch.Generator().manual_seed(1))
    found = gradients(images, signals)
    for row, image, signal in zip(found, images, signals, strict=True):
        plain = torch.autograd.grad((model(INPUT.normalize(image[None])) * signal).sum(), list(model.parameters()))
        named = dict(zip(dict(model.named_parameters()), plain, strict=True))
        expected = torch.cat([block.of(named[block.name]) for block in gradients.blocks])
        assert torch.allclose(row, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert len(gradients.blocks) == len(dict(model.named_parameters()))
    true = torch.softmax(model(INPUT.normalize(images[:1])), -1) - nn.functional.one_hot(labels[:1], 10)
    assert torch.allclose(gradients(images[:1], true.detach())[0], gradients.observed(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("slots", [1, 3])
def test_residuals_are_those_of_refits_without_the_sample(slots):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(slots, 12, 5, generator=generator).double()
    mixing = torch.randn(5, 30, generator=generator).double()
    gradients = images @ mixing + 0.5 * torch.randn(slots, 12, 30, generator=generator).double()
    weights = whitening(gradients, [10, 20])
    result = estimate(gradients, images, gradients[:, 0].sum(0), weights, generator)
    # The refit stands in the same coordinates: centred and scaled as for all samples, one constant for each slot.
    features = (gradients - gradients.mean(1, keepdim=True)) * weights
    features = features / features.flatten(0, 1).square().sum(1).mean().sqrt()
    constants = torch.eye(slots).double()[:, None].expand(-1, 12, -1)
    rows = torch.cat([features, constants], -1)
    centred = images - images.mean(1, keepdim=True)
    for out in (0, 7):
        kept = [at for at in range(12) if at != out]
        left = rows[:, kept].flatten(0, 1)
        gram = left @ left.T + result.regularisation * torch.eye(len(left)).double()
        share = torch.linalg.solve(gram, left @ rows[:, out].sum(0)).view(slots, 1, -1)
        expected = centred[:, out] - (share @ centred[:, kept])[:, 0]
        assert torch.allclose(result.residuals[out], expected, atol=1e-6)
    assert result.regularisation in LAMBDAS
    assert 0 < result.error < 1


def test_a_tensor_that_does_not_vary_gets_no_weight():
    gradients = torch.randn(1, 9, 6, generator=torch.Generator().manual_seed(0))
    gradients[..., 2:] = 4.0
    assert whitening(gradients, [2, 4]).gt(0).tolist() == [True, True, False, False, False, False]


@pytest.mark.slow
def test_beats_grey_on_a_small_network_and_repeats():
    gains = []
    for index in (2, 3):
        model = build_model(Model(name="resnet20", width=8), INPUT, seed=index).eval()
        images, labels = sample(index)
        observation = observe(model, images, labels, input=INPUT)
        first, second = (fedleak.attack("mmse", iterations=40)([observation], model, seed=1)[0] for _ in range(2))
        assert torch.equal(first.images, second.images)
        assert first.labels == tuple(labels.tolist())
        gains.append(float(psnr(first.images, images)) - float(psnr(torch.full_like(images, 0.47), images)))
    assert min(gains) > 1


def test_more_images_than_it_can_read_are_refused_by_name():
    model = build_model(Model(name="resnet20", width=4), INPUT, seed=0).eval()
    images, labels = sample(*range(9))
    [result] = fedleak.attack("mmse", iterations=2)([observe(model, images, labels, input=INPUT)], model)
    assert result.images is None
    assert "at most 8 images, but 9" in result.error


@pytest.mark.parametrize("labels", [(1, 2, 7), (3, 3, 3)])
def test_signals_of_a_batch_sum_to_the_bias_gradient(labels):
    model = build_model(Model(name="resnet20", width=8), INPUT, seed=0).eval()
    images, _ = sample(0, 1, 2)
    observation = observe(model, images, torch.tensor(labels), input=INPUT)
    signals, certified = batch_signals(observation, model, labels, True, Seed(0))
    true = (torch.softmax(model(INPUT.normalize(images)), -1) - nn.functional.one_hot(torch.tensor(labels), 10)).detach() / 3
    bias = next(value for name, value in observation.update.items() if name.endswith("bias") and value.shape == (10,))
    assert torch.allclose(signals.sum(0), bias, atol=1e-5)
    assert certified
    # Images of one label stand in any order.
    nearest = (signals[:, None] - true).abs().amax(2).min(1)
    assert float(nearest.values.max()) < 1e-4
    assert sorted(nearest.indices.tolist()) == [0, 1, 2]
    assert nearest.indices.tolist() == [0, 1, 2] or len(set(labels)) == 1


def test_without_a_separation_signals_are_those_of_the_mean_image():
    model = build_model(Model(name="resnet20", width=8), INPUT, seed=0).eval()
    images, labels = sample(0, 1)
    observation = observe(model, images, labels, input=INPUT)
    signals, certified = batch_signals(observation, model, [int(labels[0])] * 2, True, Seed(0))
    assert not certified
    assert torch.allclose(signals.sum(1), torch.zeros(2), atol=1e-5)


def test_a_batch_is_read_at_once_and_found_nearer_than_grey():
    model = build_model(Model(name="resnet20", width=8), INPUT, seed=0).eval()
    images, labels = sample(2, 3)
    [result] = fedleak.attack("mmse", iterations=30)([observe(model, images, labels, input=INPUT)], model, seed=1)
    assert sorted(result.labels) == sorted(labels.tolist())
    found = result.images[pair(result.images, images)]
    assert float((psnr(found, images) - psnr(torch.full_like(images, 0.47), images)).mean()) > 0.5


@pytest.mark.parametrize("channels", [1, 3])
def test_dead_leaves_have_edges_that_noise_of_the_same_contrast_lacks(channels):
    spec = InputSpec((channels, 24, 32), 10, (0.0,) * channels, (1.0,) * channels)
    like = torch.zeros(1)
    leaves = dead_leaves(20, spec, torch.Generator().manual_seed(0), like)
    noise = synthetic_images(20, spec, torch.Generator().manual_seed(0), like)
    assert leaves.shape == (20, *spec.shape)
    assert float(leaves.min()) >= 0
    assert float(leaves.max()) <= 1

    def kurtosis(images):
        steps = images.diff(dim=-1)
        return float(steps.pow(4).mean() / steps.square().mean().square())

    assert kurtosis(leaves) > 2 * kurtosis(noise)


def test_what_was_missed_is_the_spread_of_what_is_drawn_next():
    centre = torch.full((2, 3, 16, 16), 0.5)
    spread = torch.tensor([0.02, 0.05]).view(2, 1, 1, 1).expand(-1, 3, 16, 16)
    drawn = around(centre, spread, 400, INPUT, torch.Generator().manual_seed(0))
    again = missed(drawn.transpose(0, 1) - centre, INPUT)
    assert torch.allclose(again, spread, rtol=0.15)


def test_batchnorm_over_several_images_is_refused():
    model = build_model(Model(name="resnet20", width=4), INPUT, seed=0)
    images, labels = sample(0, 1)
    observation = observe(model, images, labels, input=INPUT)
    assert observation.local == LocalTraining(2, 2, mode="train")
    with pytest.raises(fedleak.errors.AttackError, match="mixes"):
        ClampedNetwork(model, observation, torch.device("cpu"))
