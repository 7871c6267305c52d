"""Which private images a client trains on in a round: a pure function of the scenario, its secret too, the client and the round.

Training and, after the attack, the evaluation's query both call it, so that a client keeps no copy of its batch and
survives a restart between the two.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedleak.data.federated import FederatedData, federated_data
from fedleak.scenario.schema import Scenario
from fedleak.seeding import Seed, clients_seed

Indices = NDArray[np.int64]


_latest: tuple[Scenario, str, FederatedData] | None = None


def client_data(scenario: Scenario) -> FederatedData:
    """Return the scenario's data, opened and split once per process."""
    global _latest
    # Each message of a round asks, with the same object; a relative path is another in another folder.
    if _latest is None or _latest[0] is not scenario or _latest[1] != os.getcwd():  # noqa: PTH109 (Path.cwd takes ten times as long)
        _latest = scenario, os.getcwd(), federated_data(scenario.data, scenario.federation.clients, scenario.seed)  # noqa: PTH109
    return _latest[2]


def local_steps(scenario: Scenario, shard_size: int, client: int, server_round: int) -> list[Indices]:
    """Return the positions in the shard of each local step's batch.

    FedSGD takes one batch a round and walks through the shard, reshuffled after each pass, so that rounds see new
    images until the shard is used up. FedAvg takes ``epochs`` shuffled passes in batches (the last may be smaller),
    or ``steps`` batches of as many passes as that needs. Where a step accumulates several batches, its batch here is all of them.

    Returns
    -------
    list of ndarray
        One (batch,) int64 array a local step.
    """
    seed = clients_seed(scenario.secret, scenario.seed).derive("batch", client)
    size = min(scenario.local.taken_together, shard_size)
    if scenario.federation.protocol == "fedsgd":
        per_pass = shard_size // size
        number, place = divmod(server_round - 1, per_pass)
        order = _shuffled(seed.derive("pass", number), shard_size)
        return [order[place * size : (place + 1) * size]]
    steps: list[Indices] = []
    wanted, epoch = number_of_steps(scenario, shard_size), 0
    while len(steps) < wanted:
        order = _shuffled(seed.derive("round", server_round, "epoch", epoch), shard_size)
        steps += [order[start : start + size] for start in range(0, shard_size, size)]
        epoch += 1
    return steps[:wanted]


def number_of_steps(scenario: Scenario, shard_size: int) -> int:
    """Return how many local steps a client takes in a round."""
    if scenario.federation.protocol == "fedsgd":
        return 1
    return scenario.local.steps or scenario.local.epochs * _batches(scenario, shard_size)


def images_behind(scenario: Scenario, shard_size: int) -> int:
    """Return how many distinct images are behind a client's update: what :func:`private_batch` has, whichever they are."""
    return min(number_of_steps(scenario, shard_size) * min(scenario.local.taken_together, shard_size), shard_size)


def uses_at_most(scenario: Scenario, shard_size: int, rounds: Iterable[int]) -> int:
    """Return how often any one image can have been used in these rounds: in each pass over the shard at most once.

    Which images were is the clients' secret; where they took part in every round it is as often as this.
    """
    if scenario.federation.protocol == "fedsgd":
        per_pass = shard_size // min(scenario.local.taken_together, shard_size)
        return len({(server_round - 1) // per_pass for server_round in rounds})
    passes = -(-number_of_steps(scenario, shard_size) // _batches(scenario, shard_size))
    return passes * len(set(rounds))


def _batches(scenario: Scenario, shard_size: int) -> int:
    return -(-shard_size // min(scenario.local.taken_together, shard_size))


def private_batch(scenario: Scenario, shard_size: int, client: int, server_round: int) -> Indices:
    """Return the distinct shard positions behind the client's update, ascending."""
    if images_behind(scenario, shard_size) == shard_size:  # a million epochs need not be gone through
        return np.arange(shard_size, dtype=np.int64)
    return np.unique(np.concatenate(local_steps(scenario, shard_size, client, server_round)))


def _shuffled(seed: Seed, size: int) -> Indices:
    return seed.numpy().permutation(size).astype(np.int64)
