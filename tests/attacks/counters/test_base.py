"""What every counter starts from: nothing is changed, and an update is read as what the defenses were given."""

from dataclasses import replace

import pytest
import torch

from fedleak.attacks.counters.base import Counter, change, changed, counters, leave_out, unit
from fedleak.errors import ParameterError
from fedleak.modalities.image import InputSpec
from fedleak.models import build_model
from fedleak.observation import LocalTraining, Observation, observe
from fedleak.scenario.schema import Model

INPUT = InputSpec((3, 8, 8), 5)


@pytest.fixture(scope="module")
def gradient() -> Observation:
    model = build_model(Model(name="mlp", hidden=[4]), INPUT, 1)
    return observe(model, torch.rand(2, *INPUT.shape), torch.arange(2), input=INPUT)


@pytest.fixture(scope="module")
def weights(gradient: Observation) -> Observation:
    update = {name: value - 0.2 * gradient.update[name] for name, value in gradient.parameters.items()}
    return replace(gradient, kind="weights", update=update, local=LocalTraining(2, 2, 4, learning_rate=0.05))


def test_weights_are_read_as_their_change_and_put_back_as_weights(gradient: Observation, weights: Observation) -> None:
    assert change(gradient) is gradient.update
    assert (unit(gradient), unit(weights)) == (1.0, pytest.approx(0.2))
    for name, value in change(weights).items():
        assert torch.allclose(value, -0.2 * gradient.update[name], atol=1e-6)
    assert weights.update.keys() == changed(weights, change(weights)).update.keys()
    for name, value in changed(weights, change(weights)).update.items():
        assert torch.allclose(value, weights.update[name])
    assert changed(gradient, change(gradient)).update is gradient.update


def test_what_is_left_out_is_zero_and_the_rest_the_same() -> None:
    tensors = [torch.ones(2), torch.ones(3)]
    found = leave_out(tensors, ["a", "b"], frozenset({"b"}))
    assert found[0] is tensors[0]
    assert torch.equal(found[1], torch.zeros(3))


def test_a_counter_without_hooks_changes_nothing_and_takes_its_defenses_parameters_only(gradient: Observation) -> None:
    class Plain(Counter):
        name = "gaussian-noise"

    counter = Plain({"std": 0.1}, gradient)
    values = [torch.ones(2)]
    assert counter.clean(gradient) is gradient
    assert counter.guess(values, values) is counter.compare(values, values) is counter.noise(values, values) is values
    assert counter.start(None, torch.Generator()) == []  # type: ignore[arg-type]
    assert counter.penalty([]) is None
    assert "gaussian-noise" in counters.names(), "the one that fedleak has was not replaced"
    with pytest.raises(ParameterError, match="no_such"):
        Plain({"no_such": 1}, gradient)
