"""The server's side of a run: builds the strategy, lets Flower's own loop drive it, and accounts for each round."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn
from torch.nn import functional

from fedleak.data.federated import FederatedData, federated_data
from fedleak.data.statistics import evenly_spaced
from fedleak.defenses.chain import defended_model
from fedleak.defenses.secure_aggregation import most_weight, secure_aggregation
from fedleak.evaluation.privacy import Accountant
from fedleak.evaluation.resources import memory
from fedleak.events import Event, Listener, silent
from fedleak.models.weights import load_weights
from fedleak.positions.honest_but_curious import HonestButCurious
from fedleak.positions.spy import Spy
from fedleak.runs.folder import Arrays, RunFolder
from fedleak.scenario.schema import Scenario
from fedleak.secagg.grid import SecureGrid
from fedleak.seeding import Seed
from fedleak.server.costs import Meter
from fedleak.server.referee import Referee
from fedleak.server.strategies import build_strategy, load_state, save_state
from fedleak.threat import Knowledge
from fedleak.wire.directory import Directory
from fedleak.wire.strategy import Resumed

_EVALUATION_BATCH = 256
_SURROGATE_IMAGES = 512


@dataclass(frozen=True)
class Serving:
    """What a server needs beside the clients.

    Attributes
    ----------
    scenario : Scenario
        The experiment.
    folder : RunFolder
        Takes everything that the run does.
    device : str
        Where attacks compute.
    listener : Listener
        Told what happens.
    """

    scenario: Scenario
    folder: RunFolder
    device: str = "cpu"
    listener: Listener = silent


def make_spy(serving: Serving, directory: Directory, model: nn.Module, data: FederatedData, **files: str) -> Spy:
    """Return the attack side of the server; of ``data`` it is given the public parts only.

    ``files`` are ``rows`` and ``problems``, as for :class:`Spy`.
    """
    return Spy(
        serving.scenario,
        serving.folder,
        directory,
        model,
        input=data.input,
        mean_image=data.mean_image(),
        most_examples=data.largest_shard,
        surrogate=public_images(serving.scenario, data),
        device=serving.device,
        listener=serving.listener,
        **files,
    )


def public_images(scenario: Scenario, data: FederatedData) -> Tensor | None:
    """Return the images (N, C, H, W) in [0, 1] that the threat model grants the attacker, from the test split, if it does."""
    test = data.source.test
    if Knowledge.SURROGATE not in scenario.threat.granted or test is None:
        return None
    return test.load(evenly_spaced(len(test), _SURROGATE_IMAGES))


def federate(serving: Serving, grid: Grid, directory: Directory) -> None:
    """Train for the scenario's rounds, from the last checkpoint if the folder has one.

    Parameters
    ----------
    serving : Serving
        The experiment and where its results go.
    grid : Grid
        Reaches the clients.
    directory : Directory
        Which node holds which partition.
    """
    scenario = serving.scenario
    data = federated_data(scenario.data, scenario.federation.clients, scenario.seed)
    model = defended_model(scenario, data.input)
    buffers = frozenset(model.state_dict()) - {name for name, _ in model.named_parameters()}
    trainer = build_strategy(scenario)
    done = None
    if (serving.folder.path / "checkpoint.safetensors").exists():
        done, arrays = _restore(serving.folder, trainer)
    else:
        if scenario.model.weights is not None:
            load_weights(model, scenario.model.weights)
        arrays = ArrayRecord(model.state_dict())
    secure = secure_aggregation(scenario)
    referee = Referee(
        trainer,
        directory,
        Seed(scenario.seed),
        buffers=buffers,
        most_examples=data.largest_shard,
        summed=secure is not None,
        meter=Meter(scenario, buffers),
    )
    spy = make_spy(serving, directory, model, data) if scenario.server.curious else None
    if spy and done:
        spy.recall()
    strategy: Strategy = HonestButCurious(referee, spy) if spy else referee
    secured = None
    if secure is not None:
        grid = secured = SecureGrid(
            grid,
            directory,
            secure,
            Seed(scenario.seed).derive("secure-aggregation"),
            most_examples=most_weight(scenario, data.largest_shard),
            gradients=[name for name in arrays if name not in buffers] if scenario.federation.protocol == "fedsgd" else (),
        )
    ledger = Ledger(serving, trainer, referee, spy, model, data, done, secured)
    left = scenario.federation.rounds - (done or 0)
    Resumed(strategy, done or 0).start(
        grid, arrays, num_rounds=left, timeout=scenario.federation.timeout, evaluate_fn=ledger.close
    )


def _restore(folder: RunFolder, trainer: Strategy) -> tuple[int, ArrayRecord]:
    done, stored, plain = folder.load_checkpoint()
    load_state(trainer, plain, {name: value for name, value in stored.items() if name.startswith("state.")})
    model = {name.removeprefix("model/"): value for name, value in stored.items() if name.startswith("model/")}
    return done, ArrayRecord({name: Array(model[name]) for name in folder.manifest["model_names"]})


class Ledger:
    """Closes each round: test accuracy, privacy spent, checkpoint, one line in rounds.jsonl.

    Flower calls :meth:`close` with the global model before the first round and after each round. ``rounds_done`` is how
    many an earlier process finished; ``None`` if there was none. Where secure aggregation carries the updates, ``secured`` knows
    how many bytes a round took.
    """

    def __init__(
        self,
        serving: Serving,
        trainer: Strategy,
        referee: Referee,
        spy: Spy | None,
        model: nn.Module,
        data: FederatedData,
        rounds_done: int | None,
        secured: SecureGrid | None = None,
    ) -> None:
        self._serving = serving
        self._trainer = trainer
        self._referee = referee
        self._spy = spy
        self._model = model
        self._data = data
        self._resumed = rounds_done is not None
        self._done = rounds_done or 0
        self._secured = secured
        self._since = time.perf_counter()
        self._accountant = Accountant(serving.scenario, [len(shard) for shard in data.shards])
        for row in serving.folder.rows("rounds.jsonl"):
            self._accountant.took_part(row["round"], row.get("clients", ()))

    def close(self, flower_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Account for one finished round."""
        server_round = flower_round + self._done
        if flower_round == 0 and self._resumed:
            self._announce(server_round + 1)
            return None
        measured = self.test(arrays) if self._tests(server_round) else {"accuracy": None, "loss": None}
        row: dict[str, Any] = {"round": server_round, **measured, "memory": memory()}
        if server_round:
            spent = self._spy.seconds if self._spy else 0.0
            row |= {
                "clients": self._referee.asked,
                "failures": [vars(failure) for failure in self._referee.failures],
                "seconds": round(time.perf_counter() - self._since - spent, 4),
                "attack_seconds": round(spent, 4),
                "bytes_received": self._referee.bytes_received,
                "by_client": {str(client): costs for client, costs in self._referee.by_client.items()},
            }
            if self._secured is not None:
                row |= {"bytes_received": self._secured.bytes_received, "bytes_sent": self._secured.bytes_sent}
            self._accountant.took_part(server_round, self._referee.asked)
            row |= self._accountant.row(self._referee.asked)
        # In this order: what a kill in between leaves of the round is dropped when the run goes on.
        self._serving.folder.append("rounds.jsonl", [row])
        self._checkpoint(server_round, arrays)
        self._serving.listener(Event("round-done", row))
        self._announce(server_round + 1)
        self._since = time.perf_counter()
        return None

    def _tests(self, server_round: int) -> bool:
        scenario = self._serving.scenario
        due = server_round % scenario.evaluation.every == 0 or server_round == scenario.federation.rounds
        return due or scenario.attacked(server_round)

    def test(self, arrays: ArrayRecord) -> dict[str, float | None]:
        """Return accuracy and mean cross-entropy (nats) on the test split, or ``None`` for both where there is none.

        Of the test split at most ``evaluation.test_images`` are taken, the same in every round.
        """
        test = self._data.source.test
        if test is None:
            return {"accuracy": None, "loss": None}
        chosen = evenly_spaced(len(test), self._serving.scenario.evaluation.test_images or len(test))
        self._model.load_state_dict(arrays.to_torch_state_dict())
        device = torch.device(self._serving.scenario.local.device)
        model, right, loss = self._model.to(device).eval(), 0, 0.0
        with torch.no_grad():
            for start in range(0, len(chosen), _EVALUATION_BATCH):
                indices = chosen[start : start + _EVALUATION_BATCH]
                inputs = self._data.input.normalize(test.load(indices)).to(device)
                labels = torch.as_tensor(test.labels[indices], device=device)
                logits = model(inputs)
                right += int((logits.argmax(1) == labels).sum())
                loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
        self._model.cpu()
        mean = loss / len(chosen)
        return {"accuracy": right / len(chosen), "loss": mean if np.isfinite(mean) else None}

    def _checkpoint(self, server_round: int, arrays: ArrayRecord) -> None:
        plain, state = save_state(self._trainer)
        model = {f"model/{name}": array.numpy() for name, array in arrays.items()}
        self._serving.folder.save_checkpoint(server_round, model | state, plain)

    def _announce(self, server_round: int) -> None:
        rounds = self._serving.scenario.federation.rounds
        if server_round <= rounds:
            self._serving.listener(Event("round", {"round": server_round, "rounds": rounds}))


def final_model(folder: RunFolder) -> Arrays:
    """Return the global model after the last whole round, by state-dict name."""
    _, stored, _ = folder.load_checkpoint()
    return {name.removeprefix("model/"): value for name, value in stored.items() if name.startswith("model/")}
