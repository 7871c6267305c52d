from collections.abc import Callable

import pytest

from fedleak.api import Result
from fedleak.scenario import Scenario

Build, Start = Callable[..., Scenario], Callable[..., Result]
NORMALISED = [{"name": "resnet20", "width": 4}, {"name": "convnet", "width": 4, "norm": "batch"}]
FEDAVG = {"batch_size": 3, "epochs": 2}


@pytest.mark.parametrize("model", [{"name": "mlp", "hidden": [8]}, *NORMALISED], ids=lambda model: model["name"])
@pytest.mark.parametrize("protocol", ["fedsgd", "fedavg"])
def test_the_model_is_the_same_bits_with_and_without_the_onlooker(
    build: Build, start: Start, grey: str, protocol: str, model: dict[str, object]
) -> None:
    local = FEDAVG if protocol == "fedavg" else {"batch_size": 3}
    tables = {"model": model, "federation": {"protocol": protocol}, "local": {**local, "mode": "train"}}
    watched = start(build(**tables, attacks=[{"name": grey}, {"name": "inverting-gradients", "iterations": 2}]))
    unwatched = start(build(**tables, server={"curious": False}))
    assert watched.summary["model_sha256"] == unwatched.summary["model_sha256"]
    assert [entry["images"] for entry in watched.summary["leakage"]] == [18 if protocol == "fedsgd" else 40] * 2
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
