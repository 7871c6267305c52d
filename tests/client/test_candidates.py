import numpy as np

from fedleak.client.candidates import own_candidates
from fedleak.data.batches import client_data, private_batch
from fedleak.scenario.schema import parse_scenario

SCENARIO = parse_scenario(
    {
        "name": "test",
        "data": {"source": "samples", "image_size": 16},
        "federation": {"clients": 2, "rounds": 3},
        "local": {"batch_size": 3},
    }
)


def test_candidates_are_the_same_in_each_round_and_used_ones_are_the_batchs() -> None:
    size, rounds = len(client_data(SCENARIO).shard(1)), [1, 2, 3]
    found = [own_candidates(SCENARIO, 1, one, rounds, 100) for one in rounds]
    positions = [chosen for chosen, _ in found]
    assert (
        positions[0]
        == positions[1]
        == positions[2]
        == sorted({p for one in rounds for p in private_batch(SCENARIO, size, 1, one)})
    )
    for one, (chosen, used) in zip(rounds, found, strict=True):
        assert np.array(chosen)[used].tolist() == private_batch(SCENARIO, size, 1, one).tolist()


def test_no_more_than_asked_for() -> None:
    chosen, used = own_candidates(SCENARIO, 0, 1, [1, 2, 3], 4)
    assert len(chosen) == len(used) == len(set(chosen)) == 4
