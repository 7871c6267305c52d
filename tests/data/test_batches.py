"""Which images stand behind an update: a function of scenario, client and round alone."""

from typing import Any

import numpy as np
import pytest

from fedleak.data.batches import local_steps, private_batch
from fedleak.scenario.schema import Scenario, parse_scenario


def scenario(protocol: str, seed: int = 1, **local: Any) -> Scenario:
    return parse_scenario({"name": "x", "seed": seed, "federation": {"protocol": protocol}, "local": local})


def steps(asked: Scenario, size: int = 7, client: int = 0, server_round: int = 1) -> list[list[int]]:
    return [batch.tolist() for batch in local_steps(asked, size, client, server_round)]


def test_fedsgd_walks_through_the_shard_and_shuffles_it_anew_after_each_pass() -> None:
    asked = scenario("fedsgd", batch_size=2)
    rounds = [steps(asked, server_round=number)[0] for number in range(1, 7)]
    for walked in (rounds[:3], rounds[3:]):  # the seventh image is left for another order
        seen = [index for batch in walked for index in batch]
        assert len(set(seen)) == 6
    assert rounds[:3] != rounds[3:]


@pytest.mark.parametrize(("local", "sizes"), [({"epochs": 2}, [3, 3, 1] * 2), ({"steps": 4}, [3, 3, 1, 3])])
def test_fedavg_takes_whole_passes_in_batches_or_so_many_steps(local: dict[str, int], sizes: list[int]) -> None:
    found = steps(scenario("fedavg", batch_size=3, **local))
    assert [len(batch) for batch in found] == sizes
    assert sorted(index for batch in found[:3] for index in batch) == list(range(7))


def test_others_draw_otherwise_and_the_same_again_the_same() -> None:
    asked = scenario("fedavg", batch_size=7)
    assert steps(asked) == steps(scenario("fedavg", batch_size=7))
    others = [steps(asked, client=1), steps(asked, server_round=2), steps(scenario("fedavg", seed=2, batch_size=7))]
    assert all(other != steps(asked) for other in others)


def test_the_private_batch_names_each_image_once_in_order() -> None:
    found = private_batch(scenario("fedavg", batch_size=3, epochs=3), 7, 0, 1)
    assert np.array_equal(found, np.arange(7))
    assert len(private_batch(scenario("fedsgd", batch_size=50), 7, 0, 1)) == 7, "a batch is at most the shard"


@pytest.mark.parametrize("protocol", ["fedavg", "fedsgd"])
@pytest.mark.parametrize("local", [{}, {"epochs": 3}, {"steps": 1}, {"steps": 2}, {"steps": 3}, {"steps": 7}, {"steps": 8}])
@pytest.mark.parametrize("batch", [1, 3, 7, 9])
def test_what_is_counted_without_going_through_the_passes_is_what_they_use(
    protocol: str, local: dict[str, int], batch: int
) -> None:
    asked = scenario(protocol, batch_size=batch, **({} if protocol == "fedsgd" else local))
    walked = np.concatenate(local_steps(asked, 7, 2, 3))
    assert np.array_equal(private_batch(asked, 7, 2, 3), np.unique(walked))
