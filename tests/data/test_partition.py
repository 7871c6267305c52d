import subprocess
import sys

import numpy as np
import pytest

from fedleak.data.partition import _by_flwr, partition, partitioner_names
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Data, Named
from fedleak.seeding import Seed

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 40))
CLIENTS = 5
PARAMETERS = {
    "continuous": {"strictness": 0.5},
    "dirichlet": {"alpha": 0.5},
    "distribution": {
        "distribution_array": [[0.5] * 2] * 10,
        "num_unique_labels_per_partition": 2,
        "preassigned_num_samples_per_label": 1,
    },
    "exponential": {},
    "grouped-natural-id": {"group_size": 2},
    "iid": {},
    "inner-dirichlet": {"partition_sizes": [80] * 5, "alpha": 1.0},
    "linear": {},
    "natural-id": {},
    "order": {},
    "pathological": {"num_classes_per_partition": 2},
    "shard": {"num_shards_per_partition": 2},
    "size": {"partition_sizes": [80] * 5},
    "square": {},
}


def split(name="iid", clients=CLIENTS, seed=1, labels=LABELS, shard_size=None, **parameters):
    return partition(labels, Data(partition=Named(name=name, **parameters), shard_size=shard_size), clients, seed)


def test_every_partitioner_is_known_here():
    assert set(PARAMETERS) == set(partitioner_names())


@pytest.mark.parametrize("name", PARAMETERS)
def test_shards_are_disjoint_cover_all_and_repeat(name):
    clients = 10 if name in {"natural-id", "distribution"} else CLIENTS
    shards = split(name, clients, **PARAMETERS[name])
    assert len(shards) == clients
    assert all(shard.dtype == np.int64 for shard in shards)
    together = np.concatenate(shards)
    assert len(together) == len(set(together.tolist()))
    if name not in {"distribution", "pathological"}:  # these may leave images out
        assert sorted(together.tolist()) == list(range(len(LABELS)))
    np.random.seed(9)
    again = split(name, clients, **PARAMETERS[name])
    assert all(np.array_equal(a, b) for a, b in zip(shards, again, strict=True))


@pytest.mark.parametrize("name", ["iid", "dirichlet", "pathological", "shard"])
def test_the_seed_decides(name):
    first, second = (split(name, seed=seed, **PARAMETERS[name]) for seed in (1, 2))
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_seeds_of_flwr_datasets_own_are_replaced():
    # The labels are all that differs between the two; the partitioner's draws alone decide how many each class gives.
    counts = [[len(shard) for shard in split("dirichlet", seed=seed, alpha=0.5)] for seed in (1, 2)]
    assert counts[0] != counts[1]


@pytest.mark.parametrize("clients", [1, 3, 7, 400])
def test_iid_is_what_flwr_datasets_gives(clients):
    slow = _by_flwr(LABELS, "iid", {}, clients, Seed(1).derive("partition"))
    fast = split("iid", clients)
    assert all(np.array_equal(a, b) for a, b in zip(fast, slow, strict=True))


def test_iid_imports_no_data_frames():
    code = "import sys, numpy as np; from fedleak.data.partition import partition; from fedleak.scenario.schema import Data; "
    code += "partition(np.zeros(9, dtype=np.int64), Data(), 3, 1); assert not {'datasets', 'flwr_datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_order_is_contiguous():
    assert np.array_equal(np.concatenate(split("order", 3)), np.arange(len(LABELS)))
    assert [len(shard) for shard in split("order", 3)] == [134, 133, 133]


def test_pathological_holds_few_classes():
    for shard in split("pathological", num_classes_per_partition=2):
        assert len(set(LABELS[shard])) <= 2


def test_natural_id_holds_one_class():
    assert [set(LABELS[shard]) for shard in split("natural-id", 10)] == [{label} for label in range(10)]


def test_natural_id_is_what_flwr_datasets_gives():
    slow = _by_flwr(LABELS, "natural-id", {}, 10, Seed(1).derive("partition"))
    assert all(np.array_equal(a, b) for a, b in zip(split("natural-id", 10), slow, strict=True))


def test_natural_ids_are_those_of_the_column_and_drawn_where_there_are_more_than_clients():
    writers = np.array([f"w{number:03}" for number in np.random.default_rng(1).integers(0, 40, len(LABELS))])
    asked = []

    def natural_ids(column):
        asked.append(column)
        return writers

    drawn = []
    for seed in (1, 2):
        data = Data(partition=Named(name="natural-id", column="writer"))
        shards = partition(LABELS, data, 7, seed, natural_ids)
        held = [set(writers[shard]) for shard in shards]
        assert all(len(one) == 1 for one in held)
        drawn.append([one.pop() for one in held])
        assert drawn[-1] == sorted(set(drawn[-1]))
        assert all(len(shard) == (writers == one).sum() for shard, one in zip(shards, drawn[-1], strict=True))
    assert asked == ["writer", "writer"]
    assert drawn[0] != drawn[1]
    grouped = Data(partition=Named(name="grouped-natural-id", column="writer", group_size=10))
    assert [len(set(writers[shard])) for shard in partition(LABELS, grouped, 4, 1, natural_ids)] == [10] * 4


def test_small_alpha_is_more_skewed():
    def skew(alpha):
        return np.mean([np.bincount(LABELS[shard], minlength=10).max() / len(shard) for shard in split("dirichlet", alpha=alpha)])

    assert skew(0.2) > skew(100.0) + 0.1


def test_dirichlet_works_on_twenty_images():
    shards = split("dirichlet", 4, labels=np.arange(20) % 10, alpha=1.0)
    assert min(map(len, shards)) >= 1


def test_shard_size_truncates():
    whole, cut = split(), split(shard_size=3)
    assert all(np.array_equal(a[:3], b) for a, b in zip(whole, cut, strict=True))
    assert all(len(shard) == 80 for shard in split(shard_size=1000))


@pytest.mark.parametrize(
    ("name", "clients", "parameters", "message"),
    [
        ("iidd", 5, {}, r"unknown partitioner 'iidd'; did you mean 'iid'\?"),
        ("vertical-even", 5, {}, "unknown partitioner 'vertical-even'"),
        ("iid", 401, {}, "401 clients, but data.source 'samples' has only 400 training images; lower federation.clients"),
        ("dirichlet", 5, {"alpa": 1.0}, r"data\.partition\.alpa: 'dirichlet' has no such parameter; did you mean 'alpha'\?"),
        (
            "dirichlet",
            5,
            {"alpha": 1.0, "num_partitions": 3},
            r"data\.partition\.num_partitions: 'dirichlet' has no such parameter",
        ),
        ("iid", 5, {"alpha": 1.0}, r"data\.partition\.alpha: 'iid' has no such parameter; it takes none"),
        ("order", 5, {"alpha": 1.0}, "'order' takes no parameters, got alpha"),
        ("dirichlet", 5, {}, r"data\.partition\.alpha: 'dirichlet' needs it"),
        ("dirichlet", 5, {"alpha": -1.0}, "data.partition: 'dirichlet': Alpha values should be strictly greater"),
        ("dirichlet", 5, {"alpha": "high"}, "data.partition: 'dirichlet': The given alpha format"),
        ("dirichlet", 100, {"alpha": 0.01}, "data.partition: 'dirichlet': .*change its parameters or federation.clients"),
        ("dirichlet", 100, {"alpha": 0.01, "min_partition_size": 0}, "leaves client .* without an image .*raise alpha"),
        ("natural-id", 11, {}, "'natural-id' finds 10 ids for federation.clients = 11; lower federation.clients"),
        (
            "natural-id",
            5,
            {"group_size": 2},
            r"partition\.group_size: 'natural-id' has no such parameter; it takes 'column'",
        ),
        ("size", 5, {"partition_sizes": [200, 200]}, "'size' gives 2 shards for federation.clients = 5"),
    ],
)
def test_errors(name, clients, parameters, message):
    with pytest.raises(ScenarioError, match=message) as caught:
        split(name, clients, **parameters)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iid", "dirichlet", "shard"])
def test_a_thousand_clients_take_seconds(name):
    labels = np.random.default_rng(0).integers(0, 10, 20_000)
    shards = split(name, 1000, labels=labels, **(PARAMETERS[name] | ({"alpha": 1.0} if name == "dirichlet" else {})))
    assert len(np.unique(np.concatenate(shards))) == 20_000


@pytest.mark.parametrize(
    "parameters",
    [
        {"name": "shard", "num_shards_per_partition": 0},
        {"name": "shard", "num_shards_per_partition": 10**9},
        {"name": "shard", "shard_size": 0},
        {"name": "pathological", "num_classes_per_partition": 0},
        {"name": "dirichlet", "alpha": float("nan")},
        {"name": "dirichlet", "alpha": [0.0] * 10},
        {"name": "inner-dirichlet", "partition_sizes": [5, 5, 5, 5], "alpha": 1e-9},
        {"name": "inner-dirichlet", "partition_sizes": [0, 0, 0, 0], "alpha": 1.0},
        {"name": "size", "partition_sizes": []},
        {"name": "grouped-natural-id", "group_size": 0},
        {"name": "continuous", "strictness": -1.0},
        PARAMETERS["distribution"] | {"name": "distribution", "distribution_array": [[]]},
    ],
)  # fmt: skip
def test_whatever_a_partitioner_raises_is_one_line(parameters):
    labels = np.arange(20, dtype=np.int64) % 10
    with pytest.raises(ScenarioError, match="data.partition") as refused:
        partition(labels, Data(partition=Named(**parameters)), 4, 1)
    assert "\n" not in str(refused.value)
