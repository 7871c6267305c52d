"""Secure aggregation by Flower's SecAgg+: the server learns the sum of the clients' updates, and none of them.

Formula: y_k = q(n_k u_k / w) + PRG(b_k) + sum_{j<k} PRG(s_kj) - sum_{j>k} PRG(s_kj) mod 2**32; sum_k y_k, less the masks that
Shamir shares of b_k (survivors) and of the keys behind s_kj (dropped clients) remove, is sum_k q(n_k u_k / w)
Source: Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", ACM CCS, as flwr 1.41 implements it
Cost: four exchanges a round in place of one, and rounding; masked numbers travel as 64-bit integers, twice the bytes of float32,
and CPU seconds grow with the square of the clients (tests/benchmarks/secure_aggregation.py)
Broken by: any attack that reads the sum as one large batch; several sums with different cohorts (cohort-difference); and as flwr
1.41 has it by trying all masks, because its generator folds each seed to 32 bits, and that of two clients' common mask to 28
Limits: hides each update and not the sum: of three clients with one image each the closed form has 32 dB of the sum alone, and
65 of differences of sums once the model stands still, against 97 without (tests/benchmarks/secure_aggregation.py). A masked
vector by itself gives attacks nothing

Whose is what: the client's side is Flower's own ``secaggplus_mod``, unchanged, with Flower's keys, Shamir shares, encryption,
masks and stochastic quantiser. The server's side (:mod:`fedleak.secagg.protocol`) is ours, because Flower's
``SecAggPlusWorkflow`` drives only strategies of the older kind. It goes through the same four stages with Flower's messages and
primitives, and unlike the workflow it leaves out a client that is lost before all keys were shared, instead of ending the round.
One that is lost later is survived too, as the protocol has it.
What travels in the vector is ours too: gradients as they are, weights and buffers as their change, so that values stay small.

A client refuses to take part in a round, with an error, where Flower would clip a value or let a weight overflow: the sum
would silently be another one. By how much rounding may change an entry of the mean says :meth:`SecureAggregation.step`; with the
default ranges and clients of one size it is 2 * 8 / 2**22, about 4e-6.
"""

from __future__ import annotations

from pydantic import Field

from fedleak.defenses.base import Defense, DefenseConfig, defenses
from fedleak.scenario.schema import Scenario

MODULUS = 2**32
"""Masked numbers are taken modulo this: the most that Flower's mask generator fills."""
FEWEST = 3
"""Flower splits each client's keys into at least so many shares, each for another client."""


@defenses.register
class SecureAggregation(Defense):
    """Send the update masked, so that only the cohort's sum can be read; see the module for formula and source.

    It has no hook of its own: the engines put Flower's mod around the client app, outside of all other defenses.
    """

    name = "secure-aggregation"
    identity = {}
    protects_alone = False
    only_sums = True

    class Config(DefenseConfig):
        """Parameters."""

        num_shares: int | None = Field(
            default=None,
            ge=FEWEST,
            description="clients that each one's keys are shared among, itself included: odd, or all that are sampled (default)",
        )
        reconstruction_threshold: int | None = Field(
            default=None, ge=2, description="shares that open a key, fewer than num_shares; a majority by default"
        )
        clipping_range: float = Field(
            default=8.0, gt=0, allow_inf_nan=False, description="entries lie within plus and minus this; a client refuses others"
        )
        quantization_range: int = Field(
            default=2**22, ge=2, le=2**31, description="levels that this range is divided into; times the clients at most 2**32"
        )
        max_weight: float | None = Field(
            default=None,
            gt=0,
            allow_inf_nan=False,
            description="most images behind an update; by default as many as the batch (fedsgd) or the largest shard has",
        )

    config: Config

    def shares(self, sampled: int) -> int:
        """Return how many shares each key is split into, of ``sampled`` clients."""
        return self.config.num_shares or sampled

    def threshold(self, sampled: int) -> int:
        """Return how many shares open a key."""
        return self.config.reconstruction_threshold or self.shares(sampled) // 2 + 1

    def step(self, clients: int, examples: int, most_examples: int) -> float:
        """Return how far an entry of the mean may be off, in its own units; rounded weights add at most half as much.

        Parameters
        ----------
        clients : int
            Behind the sum.
        examples : int
            Images behind it, over all these clients.
        most_examples : int
            What ``max_weight`` is where it is not set.
        """
        weight = self.config.max_weight or most_examples
        return clients * 2 * self.config.clipping_range / self.config.quantization_range * weight / examples


def secure_aggregation(scenario: Scenario) -> SecureAggregation | None:
    """Return the scenario's secure aggregation, or ``None`` if it has none."""
    for spec in scenario.defenses:
        plugin = defenses.get(spec.name)
        if issubclass(plugin, SecureAggregation):
            return plugin(**spec.parameters)
    return None


def most_weight(scenario: Scenario, largest_shard: int) -> int:
    """Return the most images that one client's update can be the mean of."""
    return min(scenario.local.batch_size, largest_shard) if scenario.federation.protocol == "fedsgd" else largest_shard
