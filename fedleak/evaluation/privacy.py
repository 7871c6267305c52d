"""What a client has spent of its privacy: epsilon at a stated delta, by Opacus's accountant, over the rounds it took part in."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from fedleak.data.batches import uses_at_most
from fedleak.defenses.base import Mechanism, defenses
from fedleak.scenario.schema import Scenario

Row = dict[str, Any]


class Accountant:
    """One account for each client.

    A client that was asked to train in a round has paid for it, whatever became of its reply: that nothing left it is more
    than a server can know.

    Parameters
    ----------
    scenario : Scenario
        Says which defense, if any, is a mechanism of differential privacy.
    shard_sizes : sequence of int
        Images that each client holds.
    """

    def __init__(self, scenario: Scenario, shard_sizes: Sequence[int]) -> None:
        built = [defenses.get(spec.name)(**spec.parameters) for spec in scenario.defenses]
        self.mechanism = next((found for defense in built if (found := defense.mechanism()) is not None), None)
        self._scenario = scenario
        self._sizes = shard_sizes if self.mechanism is not None else ()  # without one, no account is kept
        self._rounds: list[list[int]] = [[] for _ in self._sizes]

    @property
    def _by_record(self) -> bool:
        return self.mechanism is not None and self.mechanism.unit == "record"

    def took_part(self, server_round: int, clients: Iterable[int]) -> None:
        """Note that ``clients`` trained in ``server_round`` (from 1)."""
        if self.mechanism is not None:
            for client in clients:
                self._rounds[client].append(server_round)

    def uses(self, client: int) -> int:
        """Return how often any of the client's images can have been used, or in how many rounds the client took part.

        Images that a step does not use do not pay for it, so that steps on distinct images compose in parallel. Which images a
        step used is the client's secret: what is counted is the most that it can be, in each pass over the shard once.
        """
        rounds = self._rounds[client]
        return uses_at_most(self._scenario, self._sizes[client], rounds) if self._by_record else len(rounds)

    def epsilon(self, client: int) -> float | None:
        """Return what ``client`` has spent so far; ``None`` if there is no guarantee."""
        if self.mechanism is None or self.mechanism.flaw:
            return None
        return epsilon(self.mechanism, self.uses(client), self._scenario.evaluation.delta)

    def row(self, clients: Iterable[int]) -> Row:
        """Return what a round's line says of ``clients``: nothing without a mechanism.

        ``epsilon`` by partition id, ``null`` where there is no guarantee, and then ``no_epsilon`` says why; ``delta``, and
        ``privacy_unit``, which is ``"record"`` or ``"client"``.
        """
        if self.mechanism is None:
            return {}
        row: Row = {
            "epsilon": {str(client): self.epsilon(client) for client in clients},
            "delta": self._scenario.evaluation.delta,
            "privacy_unit": self.mechanism.unit,
        }
        return row | ({"no_epsilon": self.mechanism.flaw} if self.mechanism.flaw else {})


def epsilon(mechanism: Mechanism, uses: int, delta: float) -> float:
    """Return the epsilon of ``uses`` adaptive uses of a Gaussian mechanism, by Rényi DP as Opacus accounts for it.

    Parameters
    ----------
    mechanism : Mechanism
        One without a flaw.
    uses : int
        At least 0.
    delta : float
        In (0, 1).
    """
    return _epsilon(mechanism.noise_multiplier, mechanism.sample_rate, uses, delta)


@lru_cache(maxsize=1024)
def _epsilon(noise_multiplier: float, sample_rate: float, uses: int, delta: float) -> float:
    # Opacus takes a second to import, and most runs do not need it. Its PRV accountant is tighter, but gives NaN or infinity
    # after minutes where the noise is weak, which is where attacks are interesting.
    from opacus.accountants import RDPAccountant

    if uses == 0:
        return 0.0
    accountant = RDPAccountant()
    accountant.history = [(noise_multiplier, sample_rate, uses)]
    with warnings.catch_warnings():
        # That the best order is the first or the last of those tried: the bound holds, another would be a little tighter.
        warnings.filterwarnings("ignore", message="Optimal order")
        # At a delta near 1 the bound falls below zero.
        return max(0.0, float(accountant.get_epsilon(delta)))


def spent(rounds: Iterable[Row]) -> Row | None:
    """Return the ``privacy`` of ``summary.json`` from the rows of ``rounds.jsonl``: each client's last epsilon, and the largest.

    ``None`` if the run had no mechanism of differential privacy.
    """
    rows = [row for row in rounds if "epsilon" in row]
    if not rows:
        return None
    by_client: dict[str, float | None] = {}
    for row in rows:
        by_client |= row["epsilon"]
    known = [value for value in by_client.values() if value is not None]
    kept = {key: rows[-1][key] for key in ("delta", "privacy_unit", "no_epsilon") if key in rows[-1]}
    return {"epsilon": max(known, default=None), "by_client": by_client, **kept}


def said(privacy: Row) -> str:
    """Return in one line what :func:`spent` found."""
    if privacy["epsilon"] is None:
        return f"Differential privacy: no epsilon, because {privacy['no_epsilon']}"
    unit = {"record": "each image", "client": "each client"}[privacy["privacy_unit"]]
    return f"Differential privacy of {unit}: epsilon {privacy['epsilon']:,.2f} at most, at delta {privacy['delta']:g}"
