"""What is found out of each finished round: test accuracy, and the privacy spent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Strategy
from torch import nn
from torch.nn import functional

from fedleak.data.federated import FederatedData
from fedleak.data.statistics import evenly_spaced
from fedleak.evaluation.privacy import Accountant
from fedleak.events import Event, Listener, silent
from fedleak.payload import load
from fedleak.positions.door import Door
from fedleak.runs.folder import Row, RunFolder
from fedleak.scenario.schema import Scenario
from fedleak.server.ledger import Ledger
from fedleak.server.strategies import save_state

_BATCH = 256


class Auditor:
    """Examines the global model after each round, and has the ledger close it.

    Flower calls :meth:`close` with the global model before the first round and after each round.

    Parameters
    ----------
    scenario : Scenario
        Says when to test, and the defenses whose privacy is accounted for.
    folder : RunFolder
        Of the run; its earlier rounds have spent privacy already.
    ledger : Ledger
        Writes the lines.
    door : Door
        Knows who was asked.
    trainer : Strategy
        Its state goes into the checkpoint.
    model : Module
        Of the architecture that the clients train.
    data : FederatedData
        Its test split.
    rounds_done : int, optional
        How many an earlier process finished; ``None`` if there was none.
    costs : callable, optional
        Returns what else a round's line holds.
    listener : Listener
        Told that a round begins.
    """

    def __init__(
        self,
        scenario: Scenario,
        folder: RunFolder,
        ledger: Ledger,
        door: Door,
        trainer: Strategy,
        model: nn.Module,
        data: FederatedData,
        rounds_done: int | None = None,
        *,
        costs: Callable[[], Row] = dict,
        listener: Listener = silent,
    ) -> None:
        self._scenario = scenario
        self._ledger = ledger
        self._door = door
        self._trainer = trainer
        self._model = model
        self._data = data
        self._resumed = rounds_done is not None
        self._done = rounds_done or 0
        self._costs = costs
        self._listener = listener
        self._accountant = Accountant(scenario, [len(shard) for shard in data.shards])
        rows = folder.rows("rounds.jsonl")
        for row in rows:
            self._accountant.took_part(row["round"], row.get("clients", ()))
        # Who took part is lost with a line; no client's privacy may be said to be spent less than it is.
        for lost in set(range(1, self._done + 1)) - {row["round"] for row in rows}:
            self._accountant.took_part(lost, range(scenario.federation.clients))

    def close(self, flower_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Account for one finished round."""
        server_round = flower_round + self._done
        if flower_round or not self._resumed:
            measured = self.test(arrays) if self._tests(server_round) else {"accuracy": None, "loss": None}
            more: Row = {}
            if server_round:
                self._accountant.took_part(server_round, self._door.asked)
                more = self._costs() | self._accountant.row(self._door.asked)
            plain, state = save_state(self._trainer)
            self._ledger.close(server_round, arrays, measured, more, plain, state)
        self._announce(server_round + 1)
        return None

    def _tests(self, server_round: int) -> bool:
        scenario = self._scenario
        due = server_round % scenario.evaluation.every == 0 or server_round == scenario.federation.rounds
        return due or scenario.attacked(server_round)

    def test(self, arrays: ArrayRecord) -> dict[str, float | None]:
        """Return accuracy and mean cross-entropy (nats) on the test split, or ``None`` for both where there is none.

        Of the test split at most ``evaluation.test_images`` are taken, the same in every round.
        """
        test = self._data.source.test
        if test is None:
            return {"accuracy": None, "loss": None}
        chosen = evenly_spaced(len(test), self._scenario.evaluation.test_images or len(test))
        load(self._model, arrays.to_torch_state_dict())
        device = torch.device(self._scenario.local.device)
        model, right, loss = self._model.to(device).eval(), 0, 0.0
        with torch.no_grad():
            for start in range(0, len(chosen), _BATCH):
                indices = chosen[start : start + _BATCH]
                inputs = self._data.input.feed(test.load(indices)).to(device)
                labels = torch.as_tensor(test.labels[indices], device=device)
                logits = model(inputs)
                right += int((logits.argmax(1) == labels).sum())
                loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
        self._model.cpu()
        mean = loss / len(chosen)
        return {"accuracy": right / len(chosen), "loss": mean if np.isfinite(mean) else None}

    def _announce(self, server_round: int) -> None:
        rounds = self._scenario.federation.rounds
        if server_round <= rounds:
            self._listener(Event("round", {"round": server_round, "rounds": rounds}))
