import math
from typing import Any

import pytest
from opacus.accountants import RDPAccountant

from fedleak.data.batches import local_steps
from fedleak.defenses.base import Mechanism
from fedleak.evaluation.privacy import Accountant, epsilon, said, spent
from fedleak.scenario.schema import Scenario, parse_scenario
from fedleak.scenario.secret import draw

DELTA = 1e-5


def scene(
    name: str = "dp-sgd", protocol: str = "fedsgd", local: dict[str, Any] | None = None, delta: float = DELTA, **parameters: Any
) -> Scenario:
    return parse_scenario(
        {
            "name": "test",
            "federation": {"protocol": protocol},
            "local": local or {},
            "evaluation": {"delta": delta},
            "defenses": [{"name": name, "max_norm": 1.0, "noise_multiplier": 1.0, **parameters}],
        }
    )


def by_opacus(noise_multiplier: float, sample_rate: float, steps: int, delta: float = DELTA) -> float:
    accountant = RDPAccountant()
    for _ in range(steps):
        accountant.step(noise_multiplier=noise_multiplier, sample_rate=sample_rate)
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize("delta", [1e-5, 1e-3])
@pytest.mark.parametrize(("noise_multiplier", "sample_rate"), [(0.7, 1.0), (1.0, 0.25), (3.0, 1.0)])
def test_epsilon_is_that_of_opacus_on_the_same_events_and_less_than_the_naive_sum(
    noise_multiplier: float, sample_rate: float, delta: float
) -> None:
    mechanism = Mechanism("client", noise_multiplier, sample_rate)
    for uses in (1, 2, 12):
        found = epsilon(mechanism, uses, delta)
        assert found == by_opacus(noise_multiplier, sample_rate, uses, delta)
        naive = uses * by_opacus(noise_multiplier, sample_rate, 1, delta)
        assert found == naive if uses == 1 else found < naive
    # For scale: twelve rounds cost less than six, as a sum of epsilons has it.
    assert found < naive / 2
    assert epsilon(mechanism, 0, delta) == 0.0


def test_a_client_pays_for_each_round_that_it_took_part_in() -> None:
    accountant = Accountant(scene("client-dp"), [5, 5, 5])
    for server_round, clients in enumerate([(0, 1), (0, 2), (0, 1), (0,)], start=1):
        accountant.took_part(server_round, clients)
    assert [accountant.uses(client) for client in range(3)] == [4, 2, 1]
    for client, rounds in enumerate([4, 2, 1]):
        assert accountant.epsilon(client) == by_opacus(1.0, 1.0, rounds)


def most_used(scenario: Scenario, size: int, rounds: list[int]) -> int:
    used = [image for r in rounds for step in local_steps(scenario, size, 0, r) for image in step.tolist()]
    return max(used.count(image) for image in range(size))


@pytest.mark.parametrize(
    ("protocol", "local", "rounds", "expected"),
    [
        ("fedsgd", {"batch_size": 2}, [1, 2, 3], 1),  # a pass over six images: each is used once
        ("fedsgd", {"batch_size": 2}, [1, 2, 3, 4, 5, 6], 2),
        ("fedsgd", {"batch_size": 6}, [1, 2, 3], 3),
        ("fedavg", {"batch_size": 2, "epochs": 3}, [1], 3),
        ("fedavg", {"batch_size": 4, "epochs": 2}, [1, 5], 4),
        ("fedavg", {"batch_size": 2, "steps": 2}, [1], 1),
    ],
)
def test_an_image_pays_for_each_time_that_it_is_used(
    protocol: str, local: dict[str, Any], rounds: list[int], expected: int
) -> None:
    scenario = scene(protocol=protocol, local=local)
    accountant = Accountant(scenario, [6])
    for server_round in rounds:
        accountant.took_part(server_round, [0])
    assert accountant.uses(0) == most_used(scenario, 6, rounds) == expected
    assert accountant.epsilon(0) == by_opacus(1.0, 1.0, expected)


def test_a_pass_costs_once_however_much_of_it_was_taken_and_no_image_can_have_been_used_more_often() -> None:
    scenario = scene(local={"batch_size": 2})
    every, some = Accountant(scenario, [6]), Accountant(scenario, [6])
    for server_round in range(1, 10):
        every.took_part(server_round, [0])
        if server_round in (1, 2, 5):
            some.took_part(server_round, [0])
    assert every.uses(0) == most_used(scenario, 6, list(range(1, 10))) == 3
    assert some.uses(0) == 2
    drawn = [most_used(scenario.model_copy(update={"secret": draw()}), 6, [1, 2, 5]) for _ in range(30)]
    assert set(drawn) == {1, 2}  # which of the two, the server cannot know
    spent_by_some, spent_by_every = some.epsilon(0), every.epsilon(0)
    assert spent_by_some is not None
    assert spent_by_every is not None
    assert spent_by_some <= spent_by_every


def test_secret_sampling_is_amplified_as_poisson_and_shuffling_is_not() -> None:
    shuffled, sampled = scene(local={"batch_size": 2}), scene(local={"batch_size": 6}, sample_rate=0.25)
    accounts = []
    for scenario in (shuffled, sampled):
        accountant = Accountant(scenario, [6])
        accountant.took_part(1, [0])
        accounts.append(accountant.epsilon(0))
    assert accounts == [by_opacus(1.0, 1.0, 1), by_opacus(1.0, 0.25, 1)]


@pytest.mark.parametrize("name", ["dp-sgd", "client-dp"])
@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"noise_multiplier": 0.0}, "clipping without noise gives no differential privacy"),
        ({"clip": False}, "noise without clipping gives no differential privacy"),
        ({"noise_multiplier": 0.0, "max_norm": math.inf}, "an update without noise gives no differential privacy"),
    ],
)
def test_rows_say_why_there_is_no_epsilon(name: str, parameters: dict[str, Any], reason: str) -> None:
    accountant = Accountant(scene(name, **parameters), [5, 5])
    accountant.took_part(1, [1])
    row = accountant.row([1])
    assert row["epsilon"] == {"1": None}
    assert row["no_epsilon"].startswith(reason)
    found = spent([row])
    assert found is not None
    assert found["epsilon"] is None
    assert reason in said(found)


def test_a_run_without_a_mechanism_says_nothing() -> None:
    for specs in ([], [{"name": "clipping", "max_norm": 1.0}, {"name": "gaussian-noise", "std": 1.0}]):
        accountant = Accountant(parse_scenario({"name": "x", "defenses": specs}), [5])
        accountant.took_part(1, [0])
        assert accountant.row([0]) == {}
    assert spent([{"round": 1}]) is None


def test_what_was_spent_is_each_clients_last_and_the_largest() -> None:
    rows = [
        {"epsilon": {"0": 1.0, "1": 1.0}, "delta": DELTA, "privacy_unit": "client"},
        {"epsilon": {"0": 2.0}, "delta": DELTA, "privacy_unit": "client"},
        {"round": 3},
    ]
    found = spent(rows)
    assert found == {"epsilon": 2.0, "by_client": {"0": 2.0, "1": 1.0}, "delta": DELTA, "privacy_unit": "client"}
    assert said(found) == "Differential privacy of each client: epsilon 2.00 at most, at delta 1e-05"


def test_any_strength_that_is_allowed_has_a_finite_epsilon() -> None:
    for noise_multiplier in (1e-6, 1e6):
        for sample_rate in (1e-9, 1.0):
            for uses in (1, 10**6):
                assert math.isfinite(epsilon(Mechanism("record", noise_multiplier, sample_rate), uses, DELTA))


@pytest.mark.parametrize("noise", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("rate", [1e-30, 0.01, 1.0])
@pytest.mark.parametrize("uses", [1, 10**12])
@pytest.mark.parametrize("delta", [1e-30, 1e-5, 0.999])
def test_at_the_ends_of_all_ranges_epsilon_is_a_number(noise, rate, uses, delta):
    found = epsilon(Mechanism("record", noise, rate), uses, delta)
    assert 0 <= found < math.inf
