from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch

from fedleak.attacks.base import Attack, Reconstruction
from fedleak.experiment.result import Result
from fedleak.positions.campaign import Campaign
from fedleak.scenario.schema import Scenario

Build, Start = Callable[..., Scenario], Callable[..., Result]
NORMALISED = [{"name": "resnet20", "width": 4}, {"name": "convnet", "width": 4, "norm": "batch"}]
FEDAVG = {"batch_size": 3, "epochs": 2}


@pytest.mark.parametrize(
    "model",
    [{"name": "mlp", "hidden": [8]}, pytest.param(NORMALISED[0], marks=pytest.mark.slow), NORMALISED[1]],
    ids=lambda model: model["name"],
)
@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_the_model_is_the_same_bits_with_and_without_the_onlooker(
    build: Build, start: Start, grey: str, protocol: str, model: dict[str, object]
) -> None:
    local = FEDAVG if protocol == "fedavg" else {"batch_size": 3}
    tables = {"model": model, "federation": {"protocol": protocol}, "local": {**local, "mode": "train"}}
    watched = start(build(**tables, attacks=[{"name": grey}, {"name": "inverting-gradients", "iterations": 2}]))
    unwatched = start(build(**tables, server={"curious": False}))
    assert watched.summary["model_sha256"] == unwatched.summary["model_sha256"]
    assert [entry["examples"] for entry in watched.summary["leakage"]] == [18 if protocol == "fedsgd" else 40] * 2
    assert watched.summary["attack_failures"] == 0
    assert not list((unwatched.path / "captures").iterdir())
    assert not (unwatched.path / "reconstructions.jsonl").exists()


@pytest.mark.slow
def test_ray_trains_the_same_model_curious_or_not(build: Build, start: Start, grey: str) -> None:
    import ray

    ray.init("local", include_dashboard=False, log_to_driver=False, configure_logging=False, num_cpus=2)
    try:
        for protocol, local, watched in (("fedsgd", {"batch_size": 3}, [True, False]), ("fedavg", FEDAVG, [True, False])):
            digests = set()
            for engine, curious in [("inprocess", True), *(("ray", curious) for curious in watched)]:
                tables = {"federation": {"protocol": protocol, "engine": engine}, "local": local, "server": {"curious": curious}}
                result = start(build(model=NORMALISED[1], attacks=[{"name": grey}] if curious else [], **tables))
                assert (result.summary["client_errors"], result.summary["engine"]) == (0, engine)
                assert len(result.summary["leakage"]) == curious
                digests.add(result.summary["model_sha256"])
            assert len(digests) == 1, protocol
    finally:
        ray.shutdown()


@pytest.mark.parametrize(
    ("attacked", "held"),
    [
        ([{"clients": 1}, {"title": "other", "clients": 2, "rounds": [2]}], [1, 2]),
        ([{"clients": 7, "rounds": [1]}], [3, 0]),
        ([{"clients": 1}, {"title": "other", "rounds": [1]}], [3, 1]),
    ],
)
def test_observations_that_no_attack_looks_at_are_written_and_not_held(
    build: Build, start: Start, grey: str, monkeypatch: pytest.MonkeyPatch, attacked: list[dict[str, object]], held: list[int]
) -> None:
    given: list[list[int]] = []
    attack = Campaign.attack
    monkeypatch.setattr(
        Campaign,
        "attack",
        lambda self, at, seen, grid: given.append([o.client for o in seen]) or attack(self, at, seen, grid),
    )
    result = start(build(attacks=[{"name": grey, **spec} for spec in attacked]))
    assert given == [list(range(number)) for number in held]
    assert len(list((result.path / "captures").iterdir())) == 6


def test_an_attack_that_remembers_is_shown_all_observations(
    build: Build, start: Start, plugin: Callable[[type[Attack]], type[Attack]]
) -> None:
    shown: list[int] = []

    class Rememberer(Attack):
        name: ClassVar[str] = "rememberer"
        remembers = True

        def reconstruct(self, observation: Any, model: Any, *, rng: Any, device: Any, budget: Any) -> Reconstruction:
            return Reconstruction(torch.zeros(observation.batch_size, *observation.input.shape))

        def remember(self, observations: Any) -> None:
            shown.append(len(observations))

    plugin(Rememberer)
    start(build(attacks=[{"name": "rememberer", "clients": 1, "rounds": [2]}]))
    assert shown == [3, 3]
