import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from fedleak.client.training import gradient_of
from fedleak.defenses.base import Situation
from fedleak.defenses.precode import Bottleneck, Precode, bottlenecks
from fedleak.errors import ScenarioError
from fedleak.experiment.check import check
from fedleak.modalities.image import InputSpec
from fedleak.scenario.schema import parse_scenario
from fedleak.seeding import Seed

INPUT = InputSpec((3, 8, 8), 10)
IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(4))


def at(server_round: int = 1) -> Situation:
    return Situation(Seed(1).derive(server_round), server_round, 0, INPUT)


def network() -> nn.Module:
    with Seed(3).isolated():
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 20), nn.Sigmoid(), nn.Linear(20, 10))


def defended(**parameters: float) -> nn.Module:
    return Precode(**{"size": 6, **parameters}).on_architecture(network(), INPUT, Seed(2))


def test_the_classifier_takes_what_the_bottleneck_puts_out() -> None:
    plain, model = network(), defended()
    [bottleneck] = bottlenecks(model)
    features = plain[2](plain[1](plain[0](IMAGES)))
    torch.testing.assert_close(model(IMAGES), plain[3](bottleneck.decoder(bottleneck.mean(features))))
    added = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert added == 3 * 20 * 6 + 2 * 6 + 20


def test_all_build_the_same_network() -> None:
    one, other = defended(), defended()
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_client_draws_in_each_step_and_the_server_takes_the_mean() -> None:
    server, client, again = defended(), defended(), defended()
    Precode(size=6).on_model(client, at())
    Precode(size=6).on_model(again, at())
    first, second = client(IMAGES), client(IMAGES)
    assert not torch.allclose(first, second)
    assert torch.equal(first, again(IMAGES))
    assert torch.equal(server(IMAGES), server(IMAGES))
    [bottleneck] = bottlenecks(client)
    bottleneck.draw = None
    assert torch.equal(client(IMAGES), server(IMAGES))


def test_the_divergence_is_that_of_torch() -> None:
    model = defended(beta=0.5)
    [bottleneck] = bottlenecks(model)
    seen: list[Tensor] = []
    bottleneck.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    model(IMAGES)
    expected = kl_divergence(Normal(*bottleneck.moments(seen[0])), Normal(0.0, 1.0)).sum(1).mean() / math.log(2)
    loss = Precode(size=6, beta=0.5).on_loss(torch.tensor(2.0), model)
    torch.testing.assert_close(loss, 2 + 0.5 * expected)


def test_a_model_that_has_trained_can_be_copied() -> None:
    model = defended()
    gradient_of(model, IMAGES, torch.arange(3), Precode(size=6).on_loss)
    assert torch.equal(copy.deepcopy(model)(IMAGES), model(IMAGES))


def test_a_model_that_is_nothing_but_its_classifier_becomes_the_bottleneck() -> None:
    assert isinstance(Precode(size=2).on_architecture(nn.Linear(8, 3), InputSpec((1, 1, 8), 3), Seed(1)), Bottleneck)


def test_a_model_without_a_classifier_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = parse_scenario({"name": "x", "defenses": [{"name": "precode"}]}, "x")
    monkeypatch.setattr("fedleak.defenses.chain.build_model", lambda *_: nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten()))
    with pytest.raises(ScenarioError, match=r"defenses\[0\].*'precode'.*nn\.Linear") as refused:
        check(scenario)
    assert "\n" not in str(refused.value)
