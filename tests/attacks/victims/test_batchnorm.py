import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedleak.attacks.victims.base import Victim
from fedleak.attacks.victims.batchnorm import Statistics, batch_statistics, listening, running_statistics, statistics_distance
from fedleak.errors import AttackError
from fedleak.modalities.image import InputSpec
from fedleak.observation import LocalTraining, Observation

INPUT = InputSpec((3, 8, 8), 10, (0.5, 0.4, 0.45), (0.25, 0.24, 0.26))


def network(momentum=0.1):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=momentum), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(180, 6), nn.BatchNorm1d(6, momentum=momentum), nn.ReLU(), nn.Linear(6, 10))


def inputs(count=4, seed=0):
    return torch.randn(count, *INPUT.shape, generator=torch.Generator().manual_seed(seed))


def trained(model, batches, mode="train"):
    """Return what the server sees of a client that ran these batches, with the buffers that it sent back."""
    client = copy.deepcopy(model).train(mode == "train")
    for batch in batches:
        loss = functional.cross_entropy(client(batch), torch.zeros(len(batch), dtype=torch.long))
    gradient = torch.autograd.grad(loss, list(client.parameters()))
    return Observation(
        kind="gradient",
        parameters={name: value.detach() for name, value in model.named_parameters()},
        buffers={name: value.clone() for name, value in model.named_buffers()},
        received_buffers=dict(client.named_buffers()),
        update=dict(zip(dict(client.named_parameters()), gradient, strict=True)),
        input=INPUT,
        local=LocalTraining(len(batches[0]), len(batches[0]), mode=mode),
    )


def of(values):
    """The statistics by hand, of (B, C, ...)."""
    flat = values.transpose(0, 1).flatten(1).double()
    return flat.mean(1), flat.var(1)


def first_layers(model, batch):
    """What enters the two BatchNorm layers in train mode."""
    one = model[0](batch)
    return one, copy.deepcopy(model).train()[:5](batch)


def close(found, expected, tolerance=1e-5):
    mean, variance = expected
    assert torch.allclose(found.mean, mean.to(found.mean), atol=tolerance, rtol=1e-4)
    assert torch.allclose(found.variance, variance.to(found.variance), atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_the_batchs_statistics_are_read_off_the_buffers_exactly(momentum):
    model, batch = network(momentum), inputs()
    with torch.no_grad():
        model.train()(inputs(seed=9))  # the running statistics are those of another batch
    found = batch_statistics(trained(model, [batch]), model)
    for name, values in zip(("1", "5"), first_layers(model, batch), strict=True):
        close(found[name], of(values))


def test_of_several_steps_it_is_their_weighted_mean():
    model, batches = network(0.1), [inputs(seed=seed) for seed in (1, 2)]
    found = batch_statistics(trained(model, batches), model)["1"]
    first, second = (of(model[0](batch)) for batch in batches)
    close(found, [(0.9 * a + b) / 1.9 for a, b in zip(first, second, strict=True)])


def test_nothing_is_known_of_a_batch_that_moved_nothing_or_whose_buffers_are_withheld():
    model = network()
    assert batch_statistics(trained(model, [inputs()], mode="eval"), model) == {}
    seen = trained(model, [inputs()])
    assert batch_statistics(replace(seen, received_buffers=None), model) == {}
    assert batch_statistics(replace(seen, received_buffers=seen.buffers), model) == {}
    assert batch_statistics(replace(seen, received_buffers={}), model) == {}


def test_running_statistics_are_known_once_they_have_seen_a_batch():
    model = network()
    assert running_statistics(trained(model, [inputs()]), model) == {}
    with torch.no_grad():
        model.train()(inputs())
    found = running_statistics(trained(model, [inputs()]), model)
    assert torch.equal(found["5"].variance, model[5].running_var.double())


def test_the_true_batch_is_at_distance_zero_and_another_is_not_and_gradients_flow():
    model, batch = network(), inputs()
    seen = trained(model, [batch])
    known = batch_statistics(seen, model)
    victim = Victim(model, seen, torch.device("cpu"))
    with listening(victim.network) as heard:
        victim.logits(batch)
        assert float(statistics_distance(heard, known).detach()) < 1e-3
        guess = inputs(seed=5).requires_grad_()
        victim.logits(guess)
        far = statistics_distance(heard, known)
        assert float(far.detach()) > 0.1
        assert bool(torch.autograd.grad(far, guess)[0].any())
    heard.clear()
    victim.logits(batch)
    assert heard == {}, "the hooks are gone"


def test_distance_is_the_sum_over_layers_and_both_statistics():
    zero = Statistics(torch.zeros(2), torch.zeros(2))
    found = {"a": Statistics(torch.tensor([3.0, 4.0]), torch.zeros(2)), "b": Statistics(torch.zeros(2), torch.tensor([0.0, 2.0]))}
    assert float(statistics_distance(found, {"a": zero, "b": zero})) == pytest.approx(7)
    assert float(statistics_distance(found, {"b": zero})) == pytest.approx(2)
    with pytest.raises(AttackError, match="'c'"):
        statistics_distance(found, {"c": zero})


def test_a_single_value_for_each_channel_has_no_variance():
    layer = nn.BatchNorm1d(2).eval()
    with listening(nn.Sequential(layer)) as heard:
        layer(torch.tensor([[1.0, 2.0]]))
    assert heard["0"].variance.tolist() == [0, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_broken_buffers_are_a_named_failure(value):
    model = network()
    seen = trained(model, [inputs()])
    broken = {**seen.received_buffers, "1.running_mean": torch.full((5,), value)}
    with pytest.raises(AttackError, match="'1' are not finite"):
        batch_statistics(replace(seen, received_buffers=broken), model)
