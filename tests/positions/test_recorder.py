"""Of what came back an observation holds what is granted, and nothing more; each is saved as it is made."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import MetricRecord, RecordDict

from fedleak.modalities.image import InputSpec
from fedleak.observation import LocalTraining, Observation
from fedleak.payload import Payload
from fedleak.positions.oracle import LabelOracle
from fedleak.positions.recorder import Recorder
from fedleak.positions.terms import Terms
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import Local, Threat
from fedleak.threat import PRESETS

SPEC = InputSpec((1, 2, 2), 3)
PUBLIC = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0))
Make = Callable[..., Any]


@pytest.fixture
def recorder(folder: RunFolder, clients: Make) -> Make:
    def make(**terms: Any) -> tuple[Recorder, Any]:
        everyone = clients({"query.labels": lambda client, message: RecordDict({"facts": MetricRecord({"labels": [client]})})})
        grid = everyone.grid()
        agreed = Terms(**{"protocol": "fedsgd", "local": Local(batch_size=8), **terms})
        oracle, payload = LabelOracle(agreed, everyone.directory(grid)), Payload(("linear.weight",), ("count",))
        return Recorder(agreed, folder, oracle, input=SPEC, payload=payload, surrogate=PUBLIC), grid

    return make


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("defense_known", [False, True])
def test_what_is_granted_is_there_and_nothing_else(recorder: Make, received: Make, preset: Any, defense_known: bool) -> None:
    threat = Threat(preset=preset, defense_known=defense_known)
    one, grid = recorder(threat=threat, defenses=({"name": "clipping", "norm": 1.0},))
    observations = list(one.record(received(), grid))
    assert [observation.client for observation in observations] == [0, 1, 2]
    assert {observation.granted for observation in observations} == {threat.granted}
    last = observations[2]
    assert (last.kind, last.round, last.clients) == ("gradient", 1, ())
    assert last.local in (None, LocalTraining(4, 4))
    assert last.labels in (None, (2,))
    assert last.defenses in (None, ({"name": "clipping", "norm": 1.0},))
    assert last.surrogate is None or last.surrogate is PUBLIC


def test_values_are_as_they_came_and_in_memory_of_their_own(recorder: Make, received: Make, net: torch.nn.Module) -> None:
    one, grid = recorder(threat=Threat(preset="batchnorm-known"))
    came = received()
    first, second, _ = one.record(came, grid)
    weight = dict(net.named_parameters())["linear.weight"]
    assert torch.equal(first.parameters["linear.weight"], weight)
    assert torch.equal(second.update["linear.weight"], weight + 2)
    assert (list(first.update), list(first.buffers)) == (["linear.weight"], ["count"])
    assert (int(first.buffers["count"]), int(second.received_buffers["count"])) == (0, 2)
    assert first.parameters["linear.weight"] is second.parameters["linear.weight"]
    second.update["linear.weight"].zero_()
    assert came.good[1].arrays["linear.weight"].any()


def test_each_is_saved_before_it_is_handed_on_and_comes_back(recorder: Make, received: Make, folder: RunFolder) -> None:
    one, grid = recorder(threat=Threat(preset="surrogate-data"))
    made: list[Observation] = []
    for observation in one.record(received(), grid):
        made.append(observation)
        assert len(list(folder.captures())) == len(made)
    again = list(one.recall())
    assert [(o.client, o.labels, o.surrogate is PUBLIC) for o in again] == [(o.client, o.labels, True) for o in made]


def test_where_only_sums_are_shown_one_observation_stands_for_all(recorder: Make, received: Make, net: torch.nn.Module) -> None:
    one, grid = recorder(threat=Threat(preset="labels-known"), sums=True)
    [observation] = one.record(received([0, 2]), grid)
    assert (observation.client, observation.clients, observation.labels) == (0, (0, 2), (0, 2))
    assert observation.local is not None
    assert observation.local.num_examples == 6
    expected = dict(net.named_parameters())["linear.weight"] + (2 * 1 + 4 * 3) / 6
    assert torch.allclose(observation.update["linear.weight"], expected)
    assert list(one.record(received([1]), grid)) == []  # no majority


def test_a_sum_that_came_as_one_is_shown_as_it_came(recorder: Make, received: Make) -> None:
    one, grid = recorder(threat=Threat(preset="labels-known"), sums=True)
    [observation] = one.record(received([0], cohort=(0, 1)), grid)
    assert (observation.clients, observation.labels) == ((0, 1), (0, 1))
