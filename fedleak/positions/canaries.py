"""Watches canaries: what is left of their directions in their own updates and in the global model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedleak.evaluation.canaries import canary_seed, control_seed, direction
from fedleak.positions.base import Honest, Position
from fedleak.runs.folder import CANARIES, Arrays, Row, RunFolder
from fedleak.scenario.schema import Scenario
from fedleak.seeding import Seed
from fedleak.wire.received import Received

_HELD = 2**26  # entries of directions that are kept in memory
_Vector = NDArray[np.float64]


class CanaryWatch(Honest):
    """Stands before another position, to whom it does not show the canaries' replies; writes a row for each round.

    Parameters
    ----------
    scenario : Scenario
        Says who the canaries are.
    folder : RunFolder
        Takes the rows.
    shapes : mapping of str to tuple of int
        Of the model's parameters, without buffers.
    behind : Position
        Sees all other replies.
    """

    def __init__(self, scenario: Scenario, folder: RunFolder, shapes: Mapping[str, tuple[int, ...]], behind: Position) -> None:
        self._scenario, self._folder, self._shapes, self._behind = scenario, folder, dict(shapes), behind
        canaries = scenario.evaluation.canaries
        assert canaries is not None
        self._controls = canaries.controls
        self._clients = [client for client in range(scenario.federation.clients) if scenario.canary(client)]
        self._before: _Vector | None = None
        self._updates: dict[str, dict[str, float]] = {}

    def model_for(self, server_round: int, node: int, model: ArrayRecord) -> ArrayRecord:
        """Return what the position behind sends."""
        return self._behind.model_for(server_round, node, model)

    def see(self, received: Received, grid: Grid) -> None:
        """Measure the canaries' replies, and show the position behind those of the others."""
        self._updates = {}
        for client, reply in received.good.items():
            if self._scenario.canary(client) and not reply.clients:
                update = self._flat(reply.arrays)
                if self._scenario.federation.protocol == "fedavg":
                    update -= self._flat(received.sent[client].values)
                products = self._products(update, [canary_seed(self._scenario.seed, one) for one in self._clients])
                self._updates[str(client)] = dict(zip(map(str, self._clients), products, strict=True))
        good = {client: reply for client, reply in received.good.items() if reply.clients or not self._scenario.canary(client)}
        failures = tuple(failure for failure in received.failures if not self._scenario.canary(failure.client))
        self._behind.see(replace(received, good=good, failures=failures), grid)
        self.seconds = self._behind.seconds

    def moved(self, server_round: int, arrays: ArrayRecord) -> None:
        """Take the global model after a round, 0 for the initial one, and write the round's row."""
        now = self._flat({name: arrays[name].numpy() for name in self._shapes})
        before, self._before = self._before, now
        if server_round == 0 or before is None:
            return
        # A gradient is gone along downwards.
        change = (now - before) * (-1.0 if self._scenario.federation.protocol == "fedsgd" else 1.0)
        seed = self._scenario.seed
        model = {
            "canaries": self._products(change, [canary_seed(seed, client) for client in self._clients]),
            "controls": self._products(change, [control_seed(seed, number) for number in range(self._controls)]),
        }
        row: Row = {"round": server_round, "updates": self._updates, "model": model if np.isfinite(change).all() else None}
        self._folder.append(CANARIES, [row])
        self._updates = {}

    def _products(self, vector: _Vector, seeds: Sequence[Seed]) -> list[float]:
        return [float(vector @ along) for along in self._along(seeds)]

    def _along(self, seeds: Sequence[Seed]) -> Iterator[NDArray[np.float32]]:
        entries = sum(int(np.prod(shape)) for shape in self._shapes.values())
        keep = entries * (len(self._clients) + self._controls) <= _HELD
        for seed in seeds:
            if (found := self._drawn.get(seed.value)) is None:
                found = self._flat({name: value.numpy() for name, value in direction(seed, self._shapes).items()}, np.float32)
                if keep:
                    self._drawn[seed.value] = found
            yield found

    @cached_property
    def _drawn(self) -> dict[int, NDArray[np.float32]]:
        return {}

    def _flat(self, arrays: Arrays, dtype: type = np.float64) -> NDArray:  # type: ignore[type-arg]
        return np.concatenate([np.asarray(arrays[name], dtype).ravel() for name in self._shapes])
