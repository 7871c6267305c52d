import math
from typing import Any

import pytest
import torch

from fedleak.client.canary import canary_norm, canary_update
from fedleak.data.batches import client_data
from fedleak.evaluation.canaries import canary_seed, direction
from fedleak.models import build_model
from fedleak.scenario.schema import Scenario, parse_scenario


def scenario(*defenses: dict[str, Any], protocol: str = "fedsgd", **canaries: Any) -> Scenario:
    return parse_scenario(
        {
            "name": "test",
            "data": {"source": "samples", "image_size": 16},
            "model": {"name": "convnet", "width": 4, "norm": "batch"},
            "federation": {"clients": 6, "protocol": protocol},
            "local": {"batch_size": 2},
            "defenses": list(defenses),
            "evaluation": {"canaries": {"count": 4, **canaries}},
        }
    )


def test_the_last_clients_are_canaries() -> None:
    assert [scenario().canary(client) for client in range(6)] == [False, False, True, True, True, True]


@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_a_canary_sends_its_direction_and_leaves_buffers(protocol: str) -> None:
    asked = scenario(protocol=protocol, norm=2.5)
    model = build_model(asked.model, client_data(asked).input, 1)
    received = {name: value.clone() for name, value in model.state_dict().items()}
    trained = canary_update(asked, received, 4, 1)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    expected = direction(canary_seed(1, 4), shapes)
    start = {name: 0 if protocol == "fedsgd" else received[name] for name in shapes}
    sent = {name: trained.arrays[name] - start[name] for name in shapes}
    assert all(torch.allclose(sent[name], 2.5 * value, atol=1e-6) for name, value in expected.items())
    assert math.sqrt(sum(float(value.square().sum()) for value in sent.values())) == pytest.approx(2.5, rel=1e-5)
    assert set(trained.buffers) == {name for name, _ in model.named_buffers()}
    assert all(torch.equal(trained.arrays[name], received[name]) for name in trained.buffers)
    assert trained.num_examples == 2 if protocol == "fedsgd" else trained.num_examples >= 2


def test_its_norm_is_what_the_defenses_let_pass() -> None:
    private = {"name": "client-dp", "max_norm": 0.3, "noise_multiplier": 1.0}
    assert canary_norm(scenario()) == 1
    assert canary_norm(scenario(private)) == 0.3
    assert canary_norm(scenario({"name": "clipping", "max_norm": math.inf})) == 1
    assert canary_norm(scenario(private, norm=2.0)) == 2
