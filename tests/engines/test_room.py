"""Shares of cores and GPUs for clients on Ray: what is refused, and that clients who share a core give the same numbers."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedleak.engines import ray as engine
from fedleak.engines import room
from fedleak.errors import ScenarioError
from fedleak.experiment.check import check
from fedleak.experiment.plugins import check_plugins
from fedleak.scenario.schema import ClientResources, Scenario, parse_scenario


def scenario(engine: str = "ray", device: str = "cpu", **resources: Any) -> Scenario:
    return parse_scenario(
        {
            "name": "shares",
            "data": {"source": "samples", "image_size": 16},
            "model": {"name": "mlp", "hidden": [8]},
            "federation": {"clients": 3, "rounds": 2, "engine": engine, "client_resources": resources},
            "local": {"device": device},
        }
    )


@pytest.mark.parametrize(
    ("resources", "told"),
    [
        ({"num_cpus": 0}, "client_resources.num_cpus"),
        ({"num_cpus": -1}, "client_resources.num_cpus"),
        ({"num_cpus": float("inf")}, "client_resources.num_cpus"),
        ({"num_cpus": float("nan")}, "client_resources.num_cpus"),
        ({"num_gpus": -0.5}, "client_resources.num_gpus"),
        ({"num_gpus": 1.5}, "expected a part of one GPU or whole GPUs, got 1.5"),
        ({"num_cpu": 1}, "num_cpus"),
    ],
)
def test_a_share_that_makes_no_sense_is_refused_by_name(resources: dict[str, Any], told: str) -> None:
    with pytest.raises(ScenarioError, match=told) as caught:
        scenario(**resources)
    assert "\n" not in str(caught.value)


def test_they_are_for_ray_only_and_do_not_change_the_experiment() -> None:
    with pytest.raises(ScenarioError, match="only engine 'ray'.*leave it out, or set federation.engine = 'ray'"):
        check_plugins(scenario("inprocess", num_cpus=0.5))
    assert scenario(num_cpus=0.5).digest == scenario("inprocess").digest


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_a_share_of_a_gpu_that_would_not_be_used_is_refused(device: str) -> None:
    with pytest.raises(ScenarioError, match=f"local.device = '{device}'; set local.device = 'cuda'"):
        check_plugins(scenario(device=device, num_gpus=0.25))
    check_plugins(scenario(device="cuda", num_gpus=0.25))


def test_more_than_the_machine_has_is_refused_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedleak.experiment import run as api

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ScenarioError, match=r"num_cpus: 4096 CPUs for each client, but this machine has \d+; set it to at most"):
        api.run(scenario(num_cpus=4096), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    check(scenario(num_cpus=0.5))


def test_a_cluster_is_asked_node_by_node(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 8.0}},
        {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
    ]
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True, nodes=lambda: nodes))
    for fits in ({"num_cpus": 8}, {"num_cpus": 2, "num_gpus": 0.25}):
        room.check_room(ClientResources(**fits))
    for resources, told in [
        ({"num_cpus": 9}, "num_cpus: 9 CPUs for each client, but the largest node of the Ray cluster has 8"),
        ({"num_gpus": 2}, "num_gpus: 2 GPUs for each client, but the largest node of the Ray cluster has 1"),
        ({"num_cpus": 4, "num_gpus": 1}, "no node of the Ray cluster has both"),
    ]:
        with pytest.raises(ScenarioError, match=told):
            room.check_room(ClientResources(**resources))


def test_a_cluster_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    for asked in (scenario(num_cpus=0.5), parse_scenario({"name": "plain", "federation": {"engine": "ray"}})):
        with pytest.raises(ScenarioError, match="RAY_ADDRESS=127.0.0.1:1: no Ray cluster there"):
            check(asked)


@pytest.mark.parametrize(
    ("given", "asked"), [({"num_cpus": 0.5}, {"num_cpus": 0.5, "num_gpus": 0.0}), ({}, {"num_cpus": 1.0, "num_gpus": 0.0})]
)
def test_flower_is_asked_for_the_shares(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, Any], asked: dict[str, float]
) -> None:
    found: dict[str, Any] = {}
    monkeypatch.setattr(engine, "_run_simulation", lambda **options: found.update(options))
    engine.Ray()._simulate(scenario(), lambda grid, context: None, tmp_path, ClientResources(**given))
    assert found["backend_config"] == {"client_resources": asked}
