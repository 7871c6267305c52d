from dataclasses import replace

import pytest
import torch
from torch import nn

from fedleak.attacks.base import Budget
from fedleak.attacks.grad_inversion import GradInversion
from fedleak.attacks.images.coordinates import PixelCoordinates
from fedleak.attacks.matching.base import Descent, Try, Unknowns
from fedleak.attacks.matching.objectives import layer_distance
from fedleak.attacks.victims.base import Victim
from fedleak.attacks.victims.batchnorm import batch_statistics
from fedleak.data.samples import CIFAR10_MEAN, Samples
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import psnr
from fedleak.models import build_model
from fedleak.observation import observe
from fedleak.scenario.schema import Data, Model
from fedleak.seeding import Seed

INPUT = InputSpec((3, 16, 16), 10, (0.5, 0.4, 0.45), (0.25, 0.24, 0.26))
CPU = torch.device("cpu")
ALONE = {"tv": 0.0, "l2": 0.0, "bn": 0.0}


def normed(activation=nn.Sigmoid):
    with Seed(3).isolated():
        layers = [nn.Conv2d(3, 8, 5, 2, padding=2), nn.BatchNorm2d(8), activation(), nn.Conv2d(8, 8, 5, padding=2)]
        return nn.Sequential(*layers, nn.BatchNorm2d(8), activation(), nn.Flatten(), nn.Linear(512, 10))


def samples(*indices):
    train = Samples(Data(image_size=16)).train
    return train.load(list(indices)), torch.from_numpy(train.labels[list(indices)])


def seen_in_training(model, images, labels):
    model.train()
    with torch.no_grad():
        model(INPUT.normalize(samples(10, 11, 12, 13)[0]))
    sent = {name: value.clone() for name, value in model.named_buffers()}
    seen = observe(model, images, labels, input=INPUT)
    return replace(seen, buffers=sent, received_buffers=seen.buffers)


def test_distance_is_by_tensor_and_relative_and_its_gradient_exists_at_zero():
    observed = [torch.tensor([3.0, 4.0]), torch.tensor([0.0, 5.0])]
    guessed = [torch.tensor([3.0, 5.0]), torch.tensor([2.0, 5.0])]
    assert float(layer_distance(guessed, observed)) == pytest.approx((1 + 2) / (5 + 5))
    value = torch.tensor([3.0, 4.0], requires_grad=True)
    [slope] = torch.autograd.grad(layer_distance([value, observed[1]], observed), value, create_graph=True)
    assert bool(torch.autograd.grad(slope.sum(), value)[0].isfinite().all())


def test_loss_of_the_true_batch_is_zero_with_the_batchs_statistics_and_not_with_the_running_ones():
    images, labels = samples(0, 1)
    model = normed()
    seen = seen_in_training(model, images, labels)
    losses = {}
    for statistics in ("best", "running", "none"):
        attack = GradInversion(statistics=statistics, tv=0.0, l2=0.0, bn=1.0)
        victim = attack.victim(seen, model, CPU)
        truth = Unknowns(INPUT.normalize(images).requires_grad_(), PixelCoordinates(INPUT), labels=labels)
        [one] = [Try(victim, truth, Seed(0), Budget(None, 1))]
        losses[statistics] = float(attack.losses(one)([truth.image[None]], attack.rows([one], [[]]))[0].detach())
    assert losses["best"] < 1e-3
    assert losses["none"] < 1e-4
    assert losses["running"] > 0.1


def test_without_the_clients_buffers_the_running_statistics_serve():
    images, labels = samples(0, 1)
    model = normed()
    seen = seen_in_training(model, images, labels)
    withheld = replace(seen, received_buffers=None)
    results = {}
    for name, observation in (("granted", seen), ("withheld", withheld)):
        [results[name]] = GradInversion(iterations=3, seeds=1)([observation], model)
    [running] = GradInversion(iterations=3, seeds=1, statistics="running")([seen], model)
    assert torch.equal(results["withheld"].images, running.images)
    assert not torch.equal(results["granted"].images, running.images)
    known = GradInversion().victim(seen, model, CPU)._known
    assert torch.equal(known["1"].mean, batch_statistics(seen, model)["1"].mean)


def test_learning_rate_rises_and_falls_as_a_cosine():
    attack = GradInversion(iterations=1000, warm_up=50, learning_rate=0.1)
    rates = [attack.rate(step) for step in range(1001)]
    assert rates[0] < 0.003
    assert rates[50] == max(rates) == pytest.approx(0.1)
    assert rates[50 + 475] == pytest.approx(0.05)
    assert rates[1000] == pytest.approx(0, abs=1e-12)
    assert rates[:51] == sorted(rates[:51])
    assert rates[50:] == sorted(rates[50:], reverse=True)


def test_seeds_start_apart_and_one_of_them_is_returned():
    images, labels = samples(0)
    model = build_model(Model(name="lenet"), INPUT, 0).eval()
    seen = observe(model, images, labels, input=INPUT)
    few = {"iterations": 30, "group": 0.0, "noise": 0.0}
    attack = GradInversion(seeds=3, **few)
    [result] = attack([seen], model, seed=2)
    members = attack.unknowns(seen, (0,), Seed(2), CPU).others
    assert len(members) == 2
    assert not torch.equal(*members)
    # Without a pull, noise or statistics the first seed is what it is alone, and the best of three is no worse.
    [alone] = GradInversion(seeds=1, **few)([seen], model, seed=2)
    assert result.loss <= alone.loss + 1e-6
    assert result.images.shape == (1, *INPUT.shape)


@pytest.mark.parametrize("reach", [0, 2])
def test_group_pulls_seeds_to_their_consensus(reach):
    generator = torch.Generator().manual_seed(0)
    members = [torch.randn(1, *INPUT.shape, generator=generator).requires_grad_() for _ in range(3)]
    for member in members:
        member.grad = torch.zeros_like(member)
    GradInversion(seeds=3, group=0.5, reach=reach)._pull(members)
    middle = torch.stack([member.detach() for member in members]).mean(0)
    for member in members:
        away = member.detach() - middle
        assert float(member.grad.norm()) == pytest.approx(0.5, rel=1e-5)
        if reach == 0:
            assert torch.allclose(member.grad, 0.5 * away / away.norm(), atol=1e-6)
        assert float((member.grad * away).sum()) > 0, "a step against it goes to the mean"


def test_a_stronger_pull_leaves_seeds_nearer_to_each_other():
    images, labels = samples(0)
    model = build_model(Model(name="lenet"), INPUT, 0).eval()
    seen = observe(model, images, labels, input=INPUT)
    spread = {}
    for group in (0.0, 1.0):
        attack, kept = GradInversion(seeds=2, group=group, iterations=30), []
        whole = attack.descend
        attack.descend = lambda *given, kept=kept, whole=whole, **named: kept.append(whole(*given, **named)[0].best) or [
            Descent()
        ]
        attack([seen], model)
        [[one, other]] = kept
        spread[group] = float((one - other).norm())
    assert spread[1.0] < 0.7 * spread[0.0]


def test_noise_and_box():
    images, labels = samples(0)
    model = build_model(Model(name="lenet"), INPUT, 0).eval()
    seen = observe(model, images, labels, input=INPUT)
    still, shaken = (GradInversion(iterations=3, seeds=1, noise=noise)([seen], model)[0].images for noise in (0.0, 1.0))
    assert not torch.equal(still, shaken)
    assert float(shaken.min()) >= -1e-6
    assert float(shaken.max()) <= 1 + 1e-6


def test_joint_labels_have_logits_of_their_own_in_each_seed():
    images, labels = samples(0, 1)
    model = build_model(Model(name="lenet"), INPUT, 0).eval()
    [result] = GradInversion(iterations=3, seeds=2, labels="joint")([observe(model, images, labels, input=INPUT)], model)
    assert len(result.labels) == 2


def test_a_network_whose_loss_overflows_is_a_named_failure():
    images, labels = samples(0)
    model = build_model(Model(name="lenet"), INPUT, 0).eval()
    seen = observe(model, images, labels, input=INPUT)
    huge = replace(seen, parameters={name: value * 1e30 for name, value in seen.parameters.items()})
    [result] = GradInversion(iterations=3, labels="idlg")([huge], model)
    assert result.images is None or bool(result.images.isfinite().all())
    assert (result.error is None) == (result.images is not None)


@pytest.mark.slow
def test_exact_statistics_rebuild_a_batch_that_the_running_ones_blur():
    images, labels = samples(0, 1)
    model = normed()
    seen = replace(seen_in_training(model, images, labels), labels=tuple(labels.tolist()))
    mean = torch.tensor(CIFAR10_MEAN).view(1, 3, 1, 1).expand_as(images)
    levels = {}
    for statistics in ("running", "best"):
        attack = GradInversion(iterations=300, seeds=1, statistics=statistics, labels="given", bn=0.1, tv=0.05)
        [result] = attack([seen], model)
        order = [labels.tolist().index(label) for label in result.labels]
        levels[statistics] = float(psnr(result.images, images[order]).mean())
    assert levels["best"] > levels["running"] + 3
    assert levels["best"] > float(psnr(mean, images).mean()) + 10


def test_victim_is_the_plain_one():
    images, labels = samples(0)
    model = build_model(Model(name="lenet"), INPUT, 0).eval()
    assert type(GradInversion().victim(observe(model, images, labels, input=INPUT), model, CPU)) is Victim
