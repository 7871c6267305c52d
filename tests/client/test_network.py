from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedleak.client import network as rooms
from fedleak.client.network import Lent, network
from fedleak.client.training import train
from fedleak.data.batches import client_data
from fedleak.defenses.base import Defense, defenses
from fedleak.defenses.chain import DefenseChain, defended_model
from fedleak.modalities.image import InputSpec
from fedleak.models import models
from fedleak.observation import Tensors
from fedleak.payload import Payload
from fedleak.scenario.schema import Scenario, parse_scenario
from fedleak.seeding import Seed

INPUT = InputSpec((3, 16, 16), 10)
CPU = torch.device("cpu")
NORMALISED: dict[str, Any] = {"name": "convnet", "width": 4, "norm": "batch"}
PRIVATE: dict[str, Any] = {"max_norm": 1.0, "noise_multiplier": 0.1}
NEEDED: dict[str, dict[str, Any]] = {
    "client-dp": PRIVATE,
    "dp-sgd": PRIVATE,
    "clipping": {"max_norm": 1.0},
    "gaussian-noise": {"std": 0.1},
    "laplacian-noise": {"scale": 0.1},
    "gradient-pruning": {"ratio": 0.5},
    "quantization": {"format": "int8"},
    "random-masking": {"p": 0.5},
}


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    rooms._spare.clear()
    yield
    rooms._spare.clear()


def scene(model: dict[str, Any] | None = None, *named: str, protocol: str = "fedavg") -> Scenario:
    return parse_scenario(
        {
            "name": "test",
            "data": {"image_size": 16},
            "model": model or {"name": "mlp", "hidden": [8]},
            "federation": {"clients": 3, "rounds": 2, "protocol": protocol},
            "local": {"batch_size": 3, "steps": 2} if protocol == "fedavg" else {"batch_size": 3},
            "defenses": [{"name": name, **NEEDED.get(name, {})} for name in named],
        }
    )


def trained(scenario: Scenario, client: int) -> Tensors:
    spec = client_data(scenario).input
    seed, protocol = Seed(scenario.seed), scenario.federation.protocol
    chain = DefenseChain(scenario.defenses, spec, seed, protocol)
    generator = seed.derive("received", client).generator()
    received = {
        name: value + 0.01 * torch.rand(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in defended_model(scenario, spec).state_dict().items()
    }
    return train(scenario, chain.at(1, client), received, client, 1).arrays


def assert_lent_as_new(scenario: Scenario, *, lent: bool = True) -> None:
    """Train client 1 with a new network, and with the one that client 0 has trained before."""
    expected = trained(scenario, 1)
    rooms._spare.clear()
    trained(scenario, 0)
    spare = list(rooms._spare)
    assert bool(spare) == lent
    found = trained(scenario, 1)
    if lent:
        assert rooms._spare[0][1] is spare[0][1]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
        assert found[name].dtype == value.dtype


@pytest.mark.parametrize("name", [name for name in models.names() if models.get(name).modality == "image"])
@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_every_model_is_lent_as_new(name: str, protocol: str) -> None:
    assert_lent_as_new(scene({"name": name}, protocol=protocol))


@pytest.mark.parametrize("name", defenses.names())
def test_every_defense_has_its_network_lent_as_new(name: str) -> None:
    protocol = next(iter(sorted(defenses.get(name).protocols)))
    assert_lent_as_new(scene(NORMALISED if defenses.get(name).mechanism is Defense.mechanism else None, name, protocol=protocol))


def test_a_chain_of_defenses_has_its_network_lent_as_new() -> None:
    assert_lent_as_new(scene({"name": "vit", "dim": 12, "depth": 2, "dropout": 0.2}, "precode", "dropout"))


class Users(nn.Module):
    """A network with dropout, a buffer that does not travel, a list, and a layer that is used twice."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), self.act)
        self.drop, self.last, self.twice = nn.Dropout(0.5), nn.Linear(8, num_classes), self.act
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.calls, self.notes = 0, ["new"]
        self.shape = (1, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.calls += 1
        self.notes.append("called")
        value: Tensor = self.last(self.drop(self.twice(self.first(x)))) * self.seen * self.calls * len(self.notes)
        return value + torch.rand(())


class Holding(Users):
    """The same with a tensor as a plain attribute, which cannot be put back."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__(num_classes)
        self.state = torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        self.state, self.latest = self.state + 1, x
        return super().forward(x) * self.state.sum()


class Recurrent(nn.Module):
    """An LSTM over the image's rows, which holds its weights in a list beside."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.lstm, self.last = nn.LSTM(48, 4, batch_first=True), nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.last(self.lstm(x.permute(0, 2, 1, 3).flatten(2))[0][:, -1])
        return value


def test_a_users_network_that_counts_its_calls_is_lent_as_new() -> None:
    assert_lent_as_new(scene({"name": f"{__name__}:Users"}))


@pytest.mark.parametrize("name", ["Holding", "Recurrent"])
def test_a_network_that_cannot_be_put_back_is_built_anew(name: str) -> None:
    assert_lent_as_new(scene({"name": f"{__name__}:{name}"}), lent=False)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


def closure() -> nn.Module:
    model, seen = nn.Linear(4, 4), list[int]()
    model.register_forward_hook(lambda *_: seen.append(1))
    return model


def hooked_tensor() -> nn.Module:
    model = nn.Linear(4, 4)
    model.weight.register_hook(lambda gradient: gradient * 2)
    return model


def striding() -> nn.Module:
    return nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


class OwnWay(nn.Linear):
    def get_extra_state(self) -> int:
        return 3


@pytest.mark.parametrize(
    "build", [tied, closure, hooked_tensor, striding, lambda: OwnWay(3, 3), lambda: torch.nn.utils.weight_norm(nn.Linear(3, 3))]
)
def test_what_cannot_be_put_back_is_told(build: Any) -> None:
    model = nn.Sequential(build())
    assert Lent.of(model, Payload.of(model)) is None


def test_what_a_client_does_to_its_network_is_undone() -> None:
    scenario = scene(NORMALISED)
    received = dict(defended_model(scenario, INPUT).state_dict())
    kept = {name: value.clone() for name, value in received.items()}
    with network(scenario, INPUT, received, CPU) as (model, _):
        fresh = [str(model), *map(vars, model.modules())]
        for module in model.modules():
            module.register_forward_pre_hook(lambda *_: None)
            module.eval().mark = 3  # type: ignore[assignment]
            for value in module.parameters(recurse=False):
                value.requires_grad_(False).fill_(7)
        first = model
        model.added = nn.Linear(2, 2)
    with network(scenario, INPUT, received, CPU) as (model, _):
        assert model is first
        assert all(module.training and not module._forward_pre_hooks for module in model.modules())
        assert all(value.requires_grad for value in model.parameters())
        assert str(model) == fresh[0]
        assert [vars(module).keys() for module in model.modules()] == [part.keys() for part in fresh[1:]]  # type: ignore[attr-defined]
        assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, kept[name]) for name, value in received.items())


def test_a_network_whose_client_failed_is_not_lent_again() -> None:
    scenario = scene()
    received = dict(defended_model(scenario, INPUT).state_dict())
    with pytest.raises(ZeroDivisionError), network(scenario, INPUT, received, CPU):
        raise ZeroDivisionError
    assert rooms._spare == []


def test_one_that_is_lent_is_not_lent_to_another() -> None:
    scenario = scene()
    received = dict(defended_model(scenario, INPUT).state_dict())
    with network(scenario, INPUT, received, CPU) as (one, _), network(scenario, INPUT, received, CPU) as (other, _):
        assert one is not other


def test_other_names_or_shapes_are_refused_as_by_a_new_one() -> None:
    scenario = scene()
    received = dict(defended_model(scenario, INPUT).state_dict())
    with network(scenario, INPUT, received, CPU):
        pass
    with (
        pytest.raises(RuntimeError, match="size mismatch"),
        network(scenario, INPUT, {name: value[:1] for name, value in received.items()}, CPU),
    ):
        pass
    with (
        pytest.raises(RuntimeError, match="the global model and the network of the scenario differ in"),
        network(scenario, INPUT, {}, CPU),
    ):
        pass


def test_another_scenario_gets_its_own() -> None:
    for scenario in (scene(), scene({"name": "mlp", "hidden": [5]}), scene(None, "precode")):
        received = dict(defended_model(scenario, INPUT).state_dict())
        with network(scenario, INPUT, received, CPU) as (model, _):
            assert model.state_dict().keys() == received.keys()
            assert all(torch.equal(value, received[name]) for name, value in model.state_dict().items())


class Frozen(nn.Module):
    """A network whose normalisation stays as it is in training."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm2d(3), nn.Linear(768, num_classes)

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.last(self.norm(x).flatten(1))
        return value


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("spec", [{"name": "lenet"}, NORMALISED, {"name": f"{__name__}:Users"}, {"name": f"{__name__}:Frozen"}])
def test_what_is_known_by_heart_is_what_the_network_says(spec: dict[str, Any], training: bool) -> None:
    scenario = scene(spec)
    received = dict(defended_model(scenario, INPUT).state_dict())
    with network(scenario, INPUT, received, CPU) as (model, lent):
        assert lent is not None
        lent.set_mode(training)
        found = [module.training for module in model.modules()]
        model.train(not training).train(training)
        assert found == [module.training for module in model.modules()]
        known, said = lent.parameters(), dict(model.named_parameters())
        assert list(known) == list(said)
        assert all(known[name] is value for name, value in said.items())
