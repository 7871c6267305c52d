"""The sum that secure aggregation leaves to the attacker, without the protocol's cost: one observation for each round.

Formula: the attacker is handed sum_k n_k u_k / sum_k n_k over the round's clients, and none of the u_k
Source: fedleak's own, to study what secure aggregation (secure-aggregation) leaves without its keys, masks and rounding
Cost: none, and it protects nothing: the clients send their updates as they are, only this testbed's attacker looks away
Broken by: any attack that rebuilds large batches; several sums with different cohorts (cohort-difference)
Limits: a view for studies, and no protection; of three clients with four images each natural has 25 dB of the sum, mean image
12 (scenarios/sweeps/batches.toml)
"""

from __future__ import annotations

from fedleak.defenses.base import Defense, defenses
from fedleak.defenses.secure_aggregation import FEWEST, MODULUS, SecureAggregation, most_weight, secure_aggregation
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Scenario

_SUMMING = frozenset({"FedAvg", "FedAvgM", "FedAdagrad", "FedAdam", "FedProx", "FedSGD", "FedYogi"})
"""Strategies that need no more than the weighted mean of the clients' updates."""


@defenses.register
class SecAggView(Defense):
    """Show the attacker the round's sum only; see the module. The server's curious side reads it, the clients do not."""

    name = "secagg-view"
    identity = {}
    protects_alone = False
    only_sums = True


def only_sums(scenario: Scenario) -> bool:
    """Say whether the attacker sees one sum for each round in place of each client's update."""
    return any(defenses.get(spec.name).only_sums for spec in scenario.defenses)


def check_sums(scenario: Scenario, largest_shard: int) -> None:
    """Refuse a scenario whose sums cannot be formed, or would not be what they seem.

    Parameters
    ----------
    scenario : Scenario
        With known defenses and parameters.
    largest_shard : int
        Images in the largest shard.

    Raises
    ------
    ScenarioError
        With one line: what is wrong, where, what to do.
    """
    summing = [number for number, spec in enumerate(scenario.defenses) if defenses.get(spec.name).only_sums]
    if not summing:
        return
    where, name = f"defenses[{summing[0]}]", scenario.defenses[summing[0]].name
    if len(summing) > 1:
        second = scenario.defenses[summing[1]].name
        raise ScenarioError(f"defenses[{summing[1]}]: '{second}' cannot stand beside '{name}', which sums already; leave one out")
    if summing[0] != len(scenario.defenses) - 1:
        after = scenario.defenses[summing[0] + 1].name
        raise ScenarioError(f"{where}: '{name}' must be the last defense, because '{after}' cannot change an update in a sum")
    strategy = scenario.federation.strategy.name
    if strategy not in _SUMMING:
        raise ScenarioError(
            f"federation.strategy: '{strategy}' needs each client's update, but defense '{name}' gives the server only their "
            f"sum; use one of {', '.join(sorted(_SUMMING - {'FedSGD'}))}"
        )
    if scenario.federation.sampled < FEWEST:
        raise ScenarioError(
            f"{where}: '{name}' needs at least {FEWEST} clients a round, as Flower's SecAgg+ does, but "
            f"{scenario.federation.sampled} would be sampled; raise federation.clients or clients_per_round"
        )
    secure = secure_aggregation(scenario)
    if secure is not None:
        _check_protocol(secure, where, scenario.federation.sampled, most_weight(scenario, largest_shard))


def _check_protocol(secure: SecureAggregation, where: str, sampled: int, most: int) -> None:
    config, shares, threshold = secure.config, secure.shares(sampled), secure.threshold(sampled)
    if shares > sampled or (shares % 2 == 0 and shares != sampled):
        raise ScenarioError(
            f"{where}.num_shares: expected an odd number below {sampled}, or all {sampled} sampled clients, got {shares}"
        )
    if threshold >= shares:
        raise ScenarioError(
            f"{where}.reconstruction_threshold: expected less than num_shares = {shares}, got {threshold}; with that no "
            "client may drop out"
        )
    if config.quantization_range * sampled > MODULUS:
        raise ScenarioError(
            f"{where}.quantization_range: {config.quantization_range} levels of {sampled} clients overflow 2**32; expected at "
            f"most {MODULUS // sampled}"
        )
    if config.max_weight is not None and config.max_weight < most:
        raise ScenarioError(
            f"{where}.max_weight: a client may train on {most} images, got {config.max_weight:g}; raise it, or leave it out"
        )
