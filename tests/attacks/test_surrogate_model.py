"""The network between two weights, the place that the optimiser chooses there, and what the attack recovers."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from fedleak.attacks.base import Budget
from fedleak.attacks.matching.base import Try
from fedleak.attacks.surrogate_model import SurrogateModel, SurrogateVictim
from fedleak.attacks.victims.base import Victim
from fedleak.attacks.victims.mean_point import steps_of
from fedleak.client.training import gradient_of, step
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


def trained(rows=(0, 1), steps=2, rate=1e-2):
    """Return what the server sees after so many local steps, one image each, and what is behind it; labels ascend."""
    train = Samples(Data(image_size=16)).train
    rows = sorted(rows, key=lambda row: train.labels[row])
    pixels, labels = train.load(rows), torch.from_numpy(train.labels[rows])
    model = build_model(Model(name="lenet"), SMALL, seed=0).eval()
    seen = observe(model, pixels, labels, input=SMALL, grant=GRANT)
    local = LocalTraining(len(rows), 1, steps, -(-steps // len(rows)), rate, "eval")
    client = build_model(Model(name="lenet"), SMALL, seed=0).eval()
    for part in steps_of(tuple(range(len(rows))) * local.epochs, len(rows), local):
        step(
            dict(client.named_parameters()),
            gradient_of(client, SMALL.normalize(pixels[part]), labels[part])[1],
            rate,
            seen.parameters,
        )
    update = {name: value.detach() for name, value in client.named_parameters()}
    return replace(seen, kind="weights", update=update, local=local), model, pixels, labels


def test_the_surrogate_runs_from_the_weights_sent_to_those_received():
    seen, model, pixels, labels = trained()
    inputs, targets = SMALL.normalize(pixels), functional.one_hot(labels, 10).float()
    surrogate = SurrogateVictim(model, seen, CPU, torch.float32)
    ends = [surrogate.between(torch.tensor(way)).gradient(inputs, targets) for way in (0.0, 1.0)]
    plain = Victim(model, seen, CPU)
    for found, wanted in zip(ends, (plain, plain.at(seen.update)), strict=True):
        torch.testing.assert_close(found, wanted.gradient(inputs, targets))
    assert not all(torch.equal(*pair) for pair in zip(*ends, strict=True))


def test_the_loss_tells_which_way_to_go():
    seen, model, pixels, labels = trained(rate=0.1)
    attack = SurrogateModel()
    victim = SurrogateVictim(model, seen, CPU, torch.float64)
    inputs, targets = SMALL.normalize(pixels).double(), functional.one_hot(labels, 10).double()

    def loss(way):
        return attack.distance(victim.between(way).gradient(inputs, targets), victim.observed)

    way = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    [slope] = torch.autograd.grad(loss(way), way)
    wanted = (loss(way + 1e-4) - loss(way - 1e-4)) / 2e-4
    assert abs(float(slope)) > 0
    torch.testing.assert_close(slope, wanted.detach(), rtol=1e-4, atol=1e-10)


def begun(attack, victim, seen, model):
    """Return the attack's first start."""
    unknowns = attack.unknowns(seen, attack.restore_labels(seen, model), Seed(0), CPU)
    unknowns.others += victim.start(Seed(0).generator())
    return Try(victim, unknowns, Seed(0), Budget(None, 1))


@pytest.mark.parametrize(("way", "rate", "inside"), [(0.5, 1e-2, True), (0.0, 1.0, False), (1.0, 1.0, False), (0.5, 0.0, None)])
def test_the_share_of_the_way_moves_and_stays_between_its_ends(way, rate, inside):
    seen, model, _, _ = trained()
    attack = SurrogateModel(iterations=6, way=way, way_rate=rate, labels="given")
    victim = attack.victim(seen, model, CPU)
    found, between = [], victim.between
    victim.between = lambda share: found.append(float(share.detach())) or between(share)
    attack.minimise([begun(attack, victim, seen, model)], Budget(None, 1))
    assert found[0] == way
    assert all(0 <= share <= 1 for share in found)
    assert (len(set(found)) == 1) == (inside is None)
    if inside:
        assert all(0 < share < 1 for share in found)


def test_for_one_step_the_gradient_is_taken_at_the_weights_sent():
    several, model, _, _ = trained()
    one, _, _, _ = trained(rows=(0,), steps=1)
    assert isinstance(SurrogateModel().victim(several, model, CPU), SurrogateVictim)
    assert not isinstance(SurrogateModel().victim(one, model, CPU), SurrogateVictim)


def test_both_learning_rates_fall_at_the_milestones():
    seen, model, _, _ = trained()
    attack = SurrogateModel(iterations=8, labels="given")
    optimisers = []
    made = attack.optimiser
    attack.optimiser = lambda variables: optimisers.append(made(variables)) or optimisers[-1]
    attack.minimise([begun(attack, attack.victim(seen, model, CPU), seen, model)], Budget(None, 1))
    assert [group["lr"] for group in optimisers[0].param_groups] == pytest.approx([1e-3, 1e-6])


@pytest.mark.slow
def test_above_the_mean_image_after_local_steps():
    seen, model, pixels, _ = trained(rate=1e-3)
    [result] = SurrogateModel(iterations=400, labels="given")([seen], model)
    flat = torch.tensor(CIFAR10_MEAN).view(1, 3, 1, 1).expand_as(pixels)
    found = result.images[pair(result.images, pixels)]
    assert float(psnr(found, pixels).mean()) > float(psnr(flat, pixels).mean()) + 1
