from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from fedleak.attacks.base import Budget, attacks
from fedleak.attacks.unrolled import epoch_difference, join_copies
from fedleak.attacks.victims.mean_point import steps_of
from fedleak.attacks.victims.simulated import SimulatedVictim, epochs_of
from fedleak.attacks.victims.step_order import classifier_of, find_order
from fedleak.client.training import gradient_of, step
from fedleak.data.samples import Samples
from fedleak.local.optimisers import make_optimiser
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import LocalTraining, observe
from fedleak.scenario.schema import Data, Model
from fedleak.seeding import Seed
from fedleak.threat import Knowledge

SMALL = InputSpec((3, 16, 16), 10, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
GRANT = frozenset({Knowledge.LOCAL_TRAINING, Knowledge.LABELS})
CPU = torch.device("cpu")


def trained(order, size=1, rate=1e-2, rows=(0, 1, 3, 4)):
    """Return what the server sees after the client's own training, and what is behind it; labels ascend."""
    train = Samples(Data(image_size=16)).train
    rows = sorted(rows, key=lambda row: train.labels[row])
    pixels, labels = train.load(rows), torch.from_numpy(train.labels[rows])
    model = build_model(Model(name="lenet"), SMALL, seed=0).eval()
    seen = observe(model, pixels, labels, input=SMALL, grant=GRANT)
    epochs = len(order) // len(rows)
    local = LocalTraining(len(rows), size, epochs * -(-len(rows) // size), epochs, rate, "eval")
    client = build_model(Model(name="lenet"), SMALL, seed=0).eval()
    for part in steps_of(order, len(rows), local):
        step(
            dict(client.named_parameters()),
            gradient_of(client, SMALL.normalize(pixels[part]), labels[part])[1],
            rate,
            seen.parameters,
        )
    update = {name: value.detach() for name, value in client.named_parameters()}
    return replace(seen, kind="weights", update=update, local=local), model, pixels, labels


@pytest.mark.parametrize(("order", "size"), [((2, 0, 3, 1), 1), ((2, 0, 3, 1, 1, 3, 0, 2), 3)])
def test_simulation_is_the_clients_training(order, size):
    seen, model, pixels, labels = trained(order, size)
    victim = SimulatedVictim(model, seen, CPU)
    victim.steps = steps_of(order, 4, seen.local)
    found = victim.gradient(SMALL.normalize(pixels), functional.one_hot(labels, 10).float())
    moved = seen.local.learning_rate * seen.local.steps
    for (name, sent), mean in zip(seen.parameters.items(), found, strict=True):
        torch.testing.assert_close(sent - moved * mean, seen.update[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "clipping"),
    [
        ({"name": "sgd", "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}, None),
        ({"name": "sgd", "momentum": 0.9}, 0.05),
        ({"name": "adam"}, None),
        ({"name": "adamw", "weight_decay": 0.1}, 0.05),
    ],
)
def test_simulated_steps_are_those_of_torchs_optimiser(optimizer, clipping):
    seen, model, pixels, labels = trained((0, 1, 2, 3), rate=1e-3)
    client = build_model(Model(name="lenet"), SMALL, seed=0).eval()
    optimiser = make_optimiser(optimizer, client.parameters(), 1e-3)
    for row in range(4):
        optimiser.zero_grad()
        functional.cross_entropy(client(SMALL.normalize(pixels[row : row + 1])), labels[row : row + 1]).backward()
        if clipping is not None:
            torch.nn.utils.clip_grad_norm_(client.parameters(), clipping)
        optimiser.step()
    update = {name: value.detach() for name, value in client.named_parameters()}
    local = replace(seen.local, optimizer=optimizer, gradient_clipping=clipping)
    victim = SimulatedVictim(model, replace(seen, update=update, local=local), CPU)
    found = victim.gradient(SMALL.normalize(pixels), functional.one_hot(labels, 10).float())
    misfit = sum(float((a - b).square().sum()) for a, b in zip(found, victim.observed, strict=True))
    assert misfit < 1e-4 * sum(float(value.square().sum()) for value in victim.observed)


def test_gradient_flows_through_the_steps_as_finite_differences_say():
    seen, model, pixels, labels = trained((0, 1, 2, 3))
    victim = SimulatedVictim(model, seen, CPU, torch.float64)
    targets = functional.one_hot(labels, 10).double()
    direction = torch.randn(pixels.shape, generator=Seed(0).generator(), dtype=torch.float64)
    inputs = SMALL.normalize(pixels).double().requires_grad_()

    def value(at):
        return sum(part.sin().sum() for part in victim.gradient(at, targets))

    [slope] = torch.autograd.grad(value(inputs), inputs)
    wanted = (value(inputs + 1e-5 * direction) - value(inputs - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((slope * direction).sum(), wanted.detach(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("order", "size"), [((2, 0, 3, 1), 1), ((3, 1, 0, 2), 2)])
def test_the_classifier_tells_the_order(order, size):
    seen, model, _, labels = trained(order, size)
    victim = SimulatedVictim(model, seen, CPU)
    found = find_order(classifier_of(victim), labels.tolist(), seen.local, Seed(0), Budget(None, 1))
    assert [sorted(labels[part].tolist()) for part in steps_of(found, 4, seen.local)] == [
        sorted(labels[part].tolist()) for part in steps_of(order, 4, seen.local)
    ]


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("features", ["pixels", "convolution"])
def test_the_prior_sees_sets_not_orders(pool, features):
    images = torch.rand(4, *SMALL.shape, generator=Seed(1).generator())
    same = torch.stack([images, images[[2, 0, 3, 1]]])
    assert float(epoch_difference(same, pool, features)) == pytest.approx(0, abs=1e-10)
    assert float(epoch_difference(torch.stack([images, images.flip(3)]), pool, features)) > 1e-4


def test_copies_are_matched_and_averaged():
    images = torch.rand(4, *SMALL.shape, generator=Seed(1).generator())
    noise = 0.01 * torch.randn(images.shape, generator=Seed(2).generator())
    torch.testing.assert_close(join_copies(torch.stack([images + noise, (images - noise)[[2, 0, 3, 1]]])), images)


def test_copies_of_two_epochs_come_back_as_one_batch():
    seen, model, _, labels = trained((0, 1, 2, 3, 3, 1, 0, 2), 2)
    assert epochs_of(seen.local) == 2
    [result] = attacks.get("unrolled")(iterations=2, inner=2, local_stages=1, copies=True, order="given")([seen], model)
    assert result.error is None
    assert result.images.shape == (4, *SMALL.shape)
    assert result.labels == tuple(labels.tolist())
