from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.serverapp import strategy as flower

from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Scenario, parse_scenario
from fedleak.server.fedsgd import FedSGD
from fedleak.server.strategies import build_strategy, check_state, load_state, save_state, strategy_names


def scene(strategy: Any, protocol: str = "fedavg", **federation: Any) -> Scenario:
    table = {"clients": 5, "clients_per_round": 3, "protocol": protocol, "strategy": strategy, **federation}
    return parse_scenario({"name": "test", "federation": table, "local": {"learning_rate": 0.25}})


def test_the_scenario_decides_who_is_sampled_and_the_learning_rate() -> None:
    built = build_strategy(scene("FedAvg"))
    assert isinstance(built, flower.FedAvg)
    assert (built.min_train_nodes, built.min_available_nodes, built.fraction_evaluate) == (3, 5, 0.0)
    fair = build_strategy(scene({"name": "QFedAvg", "q": 0.5}))
    assert isinstance(fair, flower.QFedAvg)
    assert (fair.client_learning_rate, fair.q) == (0.25, 0.5)
    step = build_strategy(scene("FedSGD", "fedsgd"))
    assert isinstance(step, FedSGD)
    assert step.learning_rate == 0.25
    private = build_strategy(
        scene({"name": "DifferentialPrivacyServerSideFixedClipping", "noise_multiplier": 1.0, "clipping_norm": 1.0})
    )
    assert vars(private)["num_sampled_clients"] == 3


@pytest.mark.parametrize(
    ("strategy", "protocol", "told"),
    [
        ("FedAvgg", "fedavg", "did you mean 'FedAvg'"),
        ("FedAdam", "fedsgd", "takes weights"),
        ("FedXgbBagging", "fedavg", "boosted trees"),
        ({"name": "DifferentialPrivacyClientSideFixedClipping"}, "fedavg", "client-side mod"),
        ({"name": "DifferentialPrivacyClientSideAdaptiveClipping"}, "fedavg", "client-side mod"),
        ({"name": "FedAvg", "fraction_train": 0.1}, "fedavg", "strategy.fraction_train: .*clients_per_round"),
        ({"name": "FedAvg", "arrayrecord_key": "x"}, "fedavg", "one form"),
        ({"name": "FedAvg", "weighted_by_key": "x"}, "fedsgd", "one form"),
        ({"name": "FedAvg", "train_metrics_aggr_fn": "x"}, "fedavg", "train_metrics_aggr_fn: unknown"),
        ({"name": "FedProx", "proximal_muu": 1.0}, "fedavg", "did you mean 'proximal_mu'"),
        ({"name": "FedTrimmedAvg", "beta": 0.5}, "fedavg", "beta: expected a number of at least 0 and below 0.5, got 0.5"),
        ({"name": "FedAdam", "eta": float("nan")}, "fedavg", "eta: expected a number from 1e-12 to 1e"),
        ({"name": "FedAdam", "beta_2": 1.0}, "fedavg", "beta_2: expected a number of at least 0 and below 1, got 1.0"),
        ({"name": "FedAvgM", "server_momentum": -0.1}, "fedavg", "server_momentum: expected a number of at least 0 and below 1"),
        ({"name": "FedProx", "proximal_mu": -1.0}, "fedavg", "proximal_mu: expected a number from 0 to"),
        ({"name": "QFedAvg", "q": float("inf")}, "fedavg", "q: expected a number from 0 to 100, got inf"),
        ({"name": "Krum", "num_malicious_nodes": 1}, "fedavg", "needs 5 clients a round, but 3 are sampled"),
        ({"name": "Krum", "num_malicious_nodes": -1}, "fedavg", "num_malicious_nodes: expected a whole number of at least 0"),
        ({"name": "MultiKrum", "num_nodes_to_select": 4}, "fedavg", "num_nodes_to_select: 4 of the 3"),
        ({"name": "DifferentialPrivacyServerSideFixedClipping"}, "fedavg", "noise_multiplier: missing"),
        ({"name": "Bulyan", "num_malicious_nodes": 1}, "fedavg", "needs 7 clients a round, but 3"),
    ],
)
def test_what_cannot_work_is_refused_with_a_reason(strategy: Any, protocol: str, told: str) -> None:
    with pytest.raises(ScenarioError, match=told):
        build_strategy(scene(strategy, protocol))


def test_the_list_names_only_strategies_that_can_be_built() -> None:
    needed = {
        "DifferentialPrivacyServerSideFixedClipping": {"noise_multiplier": 1.0, "clipping_norm": 1.0},
        "DifferentialPrivacyServerSideAdaptiveClipping": {"noise_multiplier": 0.1},
    }
    assert {"FedAvg", "FedAdam", "QFedAvg", "Krum"} <= set(strategy_names())
    for name in strategy_names():
        assert build_strategy(scene({"name": name, **needed.get(name, {})}))


def test_the_state_of_a_strategy_survives_a_round_trip() -> None:
    def private() -> Any:
        return build_strategy(scene({"name": "DifferentialPrivacyServerSideAdaptiveClipping", "noise_multiplier": 0.1}))

    before, after = private(), private()
    before.clipping_norm = 0.77
    before.current_arrays = ArrayRecord({"b": Array(np.array(3)), "a": Array(np.ones(2))})
    before.strategy.seen = [np.ones(2), np.zeros(())]
    before.strategy.m_t = {"z": np.ones(1), "a": np.zeros(2)}
    plain, arrays = save_state(before)
    load_state(after, plain, arrays)
    assert after.clipping_norm == 0.77
    assert list(after.current_arrays) == ["b", "a"]
    assert after.current_arrays["b"].numpy().shape == ()
    assert [value.shape for value in after.strategy.seen] == [(2,), ()]
    assert list(after.strategy.m_t) == ["z", "a"]


@pytest.mark.parametrize(("key", "value"), [("state.weighted_by_key", None), ("state.weighted_by_key", 3), ("state.stranger", 1)])
def test_a_state_that_is_not_of_the_strategy_is_refused(key: str, value: Any) -> None:
    plain, arrays = save_state(build_strategy(scene("FedAdam")))
    check_state(build_strategy(scene("FedAdam")), plain, arrays)
    with pytest.raises(ValueError, match=key):
        check_state(build_strategy(scene("FedAdam")), plain | {key: value}, arrays)
