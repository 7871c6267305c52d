from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from fedleak.attacks.base import Budget, attacks
from fedleak.attacks.images.coordinates import FrequencyCoordinates, dct_matrix
from fedleak.attacks.images.synthetic import synthetic_images
from fedleak.attacks.matching.whitening import whitening
from fedleak.attacks.victims.base import Victim
from fedleak.attacks.victims.mean_point import Drift, LocalVictim, at_mean_point, steps_of
from fedleak.data.samples import CIFAR10_MEAN, Samples
from fedleak.evaluation.images import pair
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.metrics import psnr
from fedleak.models import build_model
from fedleak.observation import LocalTraining, observe
from fedleak.scenario.schema import Data, Model
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

SMALL = InputSpec((3, 16, 16), 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
GRANT = frozenset({Knowledge.LOCAL_TRAINING, Knowledge.LABELS})
CPU = torch.device("cpu")


def images(*indices):
    train = Samples(Data(image_size=16)).train
    return train.load(list(indices)), torch.from_numpy(train.labels[list(indices)])


def network(seed=0, **parameters):
    return build_model(Model(name="lenet", **parameters), SMALL, seed=seed).eval()


def quality(found, truth):
    return float(psnr(found[pair(found, truth)], truth).mean())


def fedavg(model, pixels, labels, order, batch_size, learning_rate):
    """Return what a server sees of local SGD over the images in this order."""
    seen = observe(model, pixels, labels, input=SMALL, grant=GRANT)
    weights = {name: value.clone() for name, value in seen.parameters.items()}
    local = LocalTraining(len(pixels), batch_size, 10**6, learning_rate=learning_rate, mode="eval")
    steps = steps_of(order, len(pixels), local)
    for part in steps:
        leaves = {name: value.requires_grad_() for name, value in weights.items()}
        out = torch.func.functional_call(model, leaves, (SMALL.normalize(pixels[part]),))
        gradient = torch.autograd.grad(functional.cross_entropy(out, labels[part]), list(leaves.values()))
        weights = {name: (leaves[name] - learning_rate * g).detach() for name, g in zip(leaves, gradient, strict=True)}
    return replace(seen, kind="weights", update=weights, local=replace(local, steps=len(steps)))


def relative(found, wanted):
    difference = sum(float((f - w).detach().square().sum()) for f, w in zip(found, wanted, strict=True))
    return (difference / sum(float(w.detach().square().sum()) for w in wanted)) ** 0.5


def test_beats_inverting_gradients_and_the_mean_image_at_equal_evaluations():
    model = network()
    truth, labels = images(5, 6)
    observation = observe(model, truth, labels, input=SMALL, grant=GRANT)
    [ours] = attacks.get("natural")(iterations=6)([observation], model)
    [theirs] = attacks.get("inverting-gradients")(iterations=150, labels="given")([observation], model)
    mean = torch.tensor(CIFAR10_MEAN).view(1, 3, 1, 1).expand_as(truth)
    assert quality(ours.images, truth) > quality(theirs.images, truth) + 6
    assert quality(ours.images, truth) > quality(mean, truth) + 6


def test_labels_are_those_granted_and_restored_otherwise():
    model = network()
    truth, labels = images(5, 6)
    observation = observe(model, truth, labels, input=SMALL, grant=GRANT)
    wrong = (1, 2)
    assert set(labels.tolist()) != set(wrong)
    natural = attacks.get("natural")(iterations=1, inner=1)
    assert natural([replace(observation, labels=wrong)], model)[0].labels == wrong
    assert natural([replace(observation, labels=None)], model)[0].labels == tuple(sorted(labels.tolist()))


def test_whitening_is_positive_deterministic_and_one_over_the_deviation():
    model = network()
    victim = Victim(model, observe(model, *images(5, 6), input=SMALL), CPU, torch.float64)
    targets = functional.one_hot(torch.tensor([1, 2]), 10).double()
    weights = whitening(victim, targets, 8, 0.1, Seed(3))
    assert all(bool((weight > 0).all() and weight.isfinite().all()) for weight in weights)
    again = whitening(victim, targets, 8, 0.1, Seed(3))
    assert all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
    generator = Seed(3).generator()
    drawn = [synthetic_images(2, SMALL, generator, targets) for _ in range(8)]
    gradients = [victim.gradient(SMALL.normalize(batch), targets) for batch in drawn]
    for weight, *entries in zip(weights, *gradients, strict=True):
        variance = torch.stack(entries).var(0)
        torch.testing.assert_close(weight.square().reciprocal(), variance + 0.1 * variance.mean(), rtol=1e-6, atol=0)


def test_whitening_ignores_what_no_image_changes():
    class Idle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used = torch.nn.Linear(768, 10)
            self.idle = torch.nn.Parameter(torch.ones(3))

        def forward(self, inputs):
            return self.used(inputs.flatten(1))

    model = Idle()
    seen = observe(network(), *images(5), input=SMALL)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    victim = Victim(model, replace(seen, parameters=parameters, update=parameters), CPU)
    weights = dict(zip(parameters, whitening(victim, torch.eye(10)[:1], 4, 0.1, Seed(0)), strict=True))
    assert not weights["idle"].any()
    assert bool((weights["used.weight"] > 0).all())


@pytest.mark.parametrize("slope", [1.0, 2.0])
def test_synthetic_images_have_the_spectrum_that_was_asked_for(slope):
    spec = InputSpec((3, 64, 64), 10)
    pixels = synthetic_images(64, spec, Seed(1).generator(), torch.zeros((), dtype=torch.float64), slope)
    assert float(pixels.min()) >= 0
    assert float(pixels.max()) <= 1
    grey = pixels.mean(1) - 0.5
    matrix = dct_matrix(64)
    amplitude = (matrix @ grey @ matrix.T).square().mean(0).sqrt()
    frequency = (torch.arange(64.0)[:, None].square() + torch.arange(64.0)[None].square()).sqrt()
    low, high = ((frequency > at) & (frequency < at + 2) for at in (4, 16))
    fall = (amplitude[low].mean() / amplitude[high].mean()).log2() / (frequency[high].mean() / frequency[low].mean()).log2()
    assert fall == pytest.approx(slope, abs=0.2)


def test_coordinates_with_another_slope_are_still_one_to_one():
    like = torch.zeros((), dtype=torch.float64)
    pixels = torch.rand(2, *SMALL.shape, generator=Seed(0).generator(), dtype=torch.float64)
    coordinates = FrequencyCoordinates(SMALL, like, slope=1.3)
    torch.testing.assert_close(coordinates.decode(coordinates.encode(pixels)), pixels)


def test_the_mean_point_explains_an_update_better_than_where_it_began_and_is_there_for_one_step():
    model = network()
    truth, labels = images(0, 1, 2, 3)
    targets = functional.one_hot(labels, 10).float()
    seen = fedavg(model, truth, labels, [0, 1, 2, 3], 1, 1e-3)
    began = Victim(model, replace(seen, kind="gradient", update=seen.gradient()), CPU)
    mean = Victim(model, at_mean_point(seen), CPU)
    errors = [relative(at.gradient(SMALL.normalize(truth), targets), at.observed) for at in (began, mean)]
    assert errors[1] < 0.8 * errors[0]
    one = at_mean_point(fedavg(model, truth, labels, [0, 1, 2, 3], 4, 1e-3))
    assert all(torch.equal(one.parameters[name], value) for name, value in seen.parameters.items())
    assert at_mean_point(one) is one


def local_victim(order, learning_rate=1e-2):
    truth, labels = images(0, 1, 3, 4)
    seen = fedavg(network(), truth, labels, order, 1, learning_rate)
    victim = LocalVictim(network(), seen, CPU, torch.float32)
    guess = SMALL.normalize(truth), functional.one_hot(labels, 10).float()
    return victim, guess, [torch.ones_like(value) for value in victim.observed]


def none(victim, *order):
    return Drift(order, [torch.zeros_like(value) for value in victim.observed])


def test_the_drift_is_exact_at_the_truth_and_the_order_is_found():
    victim, guess, weights = local_victim([2, 0, 3, 1])
    drift = victim.drift(guess, weights, none(victim, 0, 1, 2, 3), (), True, Budget(None, 1))
    assert drift.order == (2, 0, 3, 1)
    corrected = [value - moved for value, moved in zip(victim.observed, drift.values, strict=True)]
    wanted = victim.gradient(*guess)
    assert relative(corrected, wanted) < 1e-3 < 0.1 * relative(victim.observed, wanted)


def test_an_order_is_left_for_the_one_that_the_residual_points_to_and_not_for_one_tried_before():
    victim, guess, weights = local_victim([2, 0, 3, 1])
    wrong = victim.drift(guess, weights, none(victim, 0, 2, 3, 1), (), False, Budget(None, 1))
    assert wrong.order == (0, 2, 3, 1)
    after = victim.drift(guess, weights, wrong, {wrong.order}, True, Budget(None, 1))
    assert after.order == (2, 0, 3, 1)
    again = victim.drift(guess, weights, wrong, {wrong.order, after.order}, True, Budget(None, 1))
    assert again.order not in {after.order}


def test_search_for_the_order_ends_with_the_budget():
    victim, guess, weights = local_victim([2, 0, 3, 1])
    drift = victim.drift(guess, weights, none(victim, 0, 1, 2, 3), (), True, Budget(0.0, 1))
    assert drift.order == (0, 1, 2, 3)


def test_an_order_is_drawn_for_each_epoch():
    truth, labels = images(0, 1, 3)
    victim = LocalVictim(network(), fedavg(network(), truth, labels, [0, 1, 2, 2, 1, 0], 2, 1e-2), CPU, torch.float32)
    order = victim.no_drift(Seed(0).generator()).order
    assert sorted(order[:3]) == sorted(order[3:]) == [0, 1, 2]


def test_a_single_full_batch_has_no_order_to_find_but_a_drift():
    truth, labels = images(0, 1, 3)
    victim = LocalVictim(network(), fedavg(network(), truth, labels, [0, 1, 2] * 3, 3, 1e-2), CPU, torch.float32)
    guess, weights = (
        (SMALL.normalize(truth), functional.one_hot(labels, 10).float()),
        [torch.ones_like(v) for v in victim.observed],
    )
    start = none(victim, *[0, 1, 2] * 3)
    drift = victim.drift(guess, weights, start, (), True, Budget(None, 1))
    assert drift.order == start.order
    wanted = victim.gradient(*guess)
    assert relative([o - d for o, d in zip(victim.observed, drift.values, strict=True)], wanted) < 1e-3


def test_steps_cut_each_epoch_anew():
    local = LocalTraining(5, 2, steps=5, epochs=2)
    assert steps_of([0, 1, 2, 3, 4, 4, 3, 2, 1, 0], 5, local) == [[0, 1], [2, 3], [4], [4, 3], [2, 1]]


@pytest.mark.slow
def test_fedavg_is_rebuilt_better_than_without_its_drift():
    model = network()
    truth, labels = images(5, 6)
    seen = fedavg(model, truth, labels, [1, 0], 1, 1e-2)
    plain = replace(seen, kind="gradient", update=seen.gradient())
    natural = attacks.get("natural")(iterations=16, local_stages=4)
    results = natural([seen, plain], model)
    assert quality(results[0].images, truth) > quality(results[1].images, truth) + 6


def test_progress_counts_on_over_the_stages():
    model = network()
    observation = observe(model, *images(5), input=SMALL)
    told = []
    [result] = attacks.get("natural")(iterations=6, stages=3, inner=2)([observation], model, progress=told.append)
    assert [at.iteration for at in told] == [0, 1, 2, 2, 3, 4, 4, 5, 6]
    assert result.iterations == 6
