from fedleak.evaluation.utility import by_client, epsilon_by_round, utility


def costs(seconds: float | None, size: int, coded: int) -> dict[str, float | None]:
    return {"seconds": seconds, "cpu_seconds": seconds, "bytes": size, "coded_bytes": coded}


ROUNDS = [
    {"round": 1, "accuracy": 0.1, "loss": 2.3, "by_client": {"0": costs(1.0, 100, 50), "10": costs(None, 100, 100)}},
    {"round": 2, "accuracy": None, "loss": None, "by_client": {"2": costs(3.0, 200, 20), "0": costs(3.0, 100, 30)}},
    {"round": 3, "accuracy": 0.3, "loss": 2.1},
]
EPSILON = [{"round": 1, "epsilon": {"0": 1.0, "1": 2.5}}, {"round": 2}, {"round": 3, "epsilon": {"0": 1.5, "2": None}}]


def test_accuracy_names_its_rounds_and_costs_are_means():
    found = utility(ROUNDS)
    assert (found["accuracy"], found["loss"], found["rounds"]) == ([0.1, 0.3], [2.3, 2.1], [1, 3])
    assert found["cost"] == {"seconds": 7 / 3, "cpu_seconds": 7 / 3, "bytes": 125.0, "coded_bytes": 50.0}
    assert utility([])["cost"] == dict.fromkeys(found["cost"])


def test_clients_come_in_order_with_their_own_means():
    found = by_client(ROUNDS)
    assert list(found) == ["0", "2", "10"]
    assert found["0"] == {"rounds": 2, "seconds": 2.0, "cpu_seconds": 2.0, "bytes": 100.0, "coded_bytes": 40.0}
    assert found["10"]["seconds"] is None


def test_epsilon_by_round_is_the_largest_of_any_client_so_far():
    assert epsilon_by_round(EPSILON) == {1: 2.5, 3: 2.5}
    assert epsilon_by_round(ROUNDS) == {}
