"""The server's side of fedleak in a Flower app of one's own: one line around its strategy."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from fedleak.data.base import Source
from fedleak.data.federated import FederatedData
from fedleak.data.shards import Withheld
from fedleak.errors import FedleakError
from fedleak.evaluation.resources import memory
from fedleak.events import Event, Listener, silent
from fedleak.experiment.check import Checked, pick_device
from fedleak.experiment.manifest import default_folder, make_manifest, write_summary
from fedleak.experiment.plugins import build_attack
from fedleak.modalities.image import InputSpec
from fedleak.positions.spy import Spy
from fedleak.printable import clean_log
from fedleak.report.html import write_report
from fedleak.runs.folder import OWN_APP, Row, RunFolder, refuse_existing
from fedleak.scenario.schema import Scenario, parse_scenario
from fedleak.threat import Preset
from fedleak.wire.directory import Directory
from fedleak.wire.replies import sift
from fedleak.wire.strategy import StrategyWrapper

_PATIENCE = 600.0  # seconds that a node is given to say which partition it holds
_PLAUSIBLE = 10_000_000  # images that a client may say it trained on


def curious(
    strategy: Strategy,
    model: nn.Module | Callable[[], nn.Module],
    input: InputSpec,
    *,
    batch_size: int,
    learning_rate: float,
    epochs: int = 1,
    steps: int | None = None,
    attacks: Sequence[str | dict[str, Any]] = ("inverting-gradients",),
    threat: Preset = "local-training-known",
    truth: str = "reveal",
    name: str = "my-app",
    seed: int = 1,
    out: str | Path | None = None,
    device: str = "auto",
    class_names: Sequence[str] = (),
    listener: Listener = silent,
) -> Curious:
    """Wrap a strategy, so that its server looks into the updates that it receives; training stays bit for bit the same.

    The clients need one line too, :func:`fedleak.answer`; without it, nobody can say how good a reconstruction is. It leaves the
    same run folder and report as a scenario, but one that cannot be resumed or attacked again.

    On the network of Flower's quickstart with CIFAR-10, batches of 32 and three local epochs, the server learnt how often each
    class occurs and no image (1.1 dB below the mean image); of one image and one step it had 2.8 dB above it
    (tests/integration/test_dropin.py).

    Parameters
    ----------
    strategy : Strategy
        The user's own; its clients send weights, with ``num-examples`` beside them.
    model : Module or callable
        The network that is trained, or what makes one (its class).
    input : InputSpec
        Shape of an image, number of classes, and how pixels become inputs.
    batch_size, learning_rate, epochs, steps
        How clients train, as the server told them; the attacker knows it unless ``threat`` is ``"updates-only"``.
    attacks : sequence of str or dict
        Names, or tables with a name and parameters, as in a scenario file.
    threat : str
        What the attacker is granted.
    truth : {"reveal", "score"}
        Whether clients return their batches for the report's pictures, or metrics only.
    name, seed, out, device, listener
        As for a scenario and :func:`fedleak.run`; run folders go to ``$FEDLEAK_RUNS``, or ``runs``.
    class_names : sequence of str
        By default the numbers.

    Returns
    -------
    Curious
        Start it in place of the strategy.

    Raises
    ------
    ScenarioError
        If an attack or a parameter is wrong.
    FedleakError
        If the strategy drives its rounds by a loop of its own.

    Examples
    --------
    >>> strategy = fedleak.curious(FedAvg(), Net, InputSpec((3, 32, 32), 10), batch_size=32, learning_rate=0.1)  # doctest: +SKIP
    """
    if type(strategy).start is not Strategy.start:
        raise FedleakError(
            f"fedleak.curious: {type(strategy).__name__} has a start() of its own, which a wrapper would not run; "
            "move what it does into configure_train and aggregate_train"
        )
    network = model if isinstance(model, nn.Module) else model()
    local = {"batch_size": batch_size, "learning_rate": learning_rate, "epochs": epochs, "steps": steps}
    scenario = parse_scenario(
        {
            "name": name,
            "seed": seed,
            "data": {"source": "own"},
            "model": {"name": type(network).__name__},
            "federation": {"protocol": "fedavg", "strategy": {"name": type(strategy).__name__}},
            "local": {key: value for key, value in local.items() if value is not None},
            "threat": {"preset": threat},
            "attacks": [{"name": entry} if isinstance(entry, str) else entry for entry in attacks],
            "evaluation": {"truth": truth},
        },
        "fedleak.curious",
    )
    for number, spec in enumerate(scenario.attacks):
        build_attack(spec, f"attacks[{number}]", "weights", scenario.threat.granted)
    place = Path(out) if out is not None else Path(os.environ.get("FEDLEAK_RUNS", "runs")) / default_folder(scenario).name
    refuse_existing(place)
    return Curious(strategy, network, input, scenario, place, pick_device(device), tuple(class_names), listener)


class Curious(StrategyWrapper):
    """What :func:`curious` returns.

    Attributes
    ----------
    folder : RunFolder or None
        The run folder, once the first round has come back.
    """

    def __init__(
        self,
        strategy: Strategy,
        model: nn.Module,
        input: InputSpec,
        scenario: Scenario,
        place: Path,
        device: str,
        class_names: tuple[str, ...],
        listener: Listener,
    ) -> None:
        super().__init__(strategy)
        self.folder: RunFolder | None = None
        self._model, self._input, self._scenario = model, input, scenario
        self._place, self._device, self._listener = place, device, listener
        self._class_names = class_names or tuple(str(number) for number in range(input.num_classes))
        self._directory: Directory | None = None
        self._spy: Spy | None = None
        self._grid: Grid | None = None
        self._sent = ArrayRecord()
        self._asked: list[int] = []
        self._rounds, self._most_examples, self._since = 1, 0, 0.0
        self._row: Row = {}
        self._waiting: list[Row] = []  # what happened before there was a folder

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the rounds, as the wrapped strategy would; leave the run folder and its report."""
        clean_log()  # a user's strategy is shown what clients said as they said it, and may log it
        self._rounds, self._since = num_rounds, time.perf_counter()
        self._directory = Directory([], 0, lambda messages: grid.send_and_receive(messages, timeout=_PATIENCE))

        def close(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics = evaluate_fn(server_round, arrays) if evaluate_fn is not None else None
            self._close(server_round, arrays, metrics)
            return metrics

        try:
            return super().start(grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, close)
        finally:
            if self.folder is not None:
                write_summary(self.folder)
                report = write_report(self.folder.path)
                print(f"fedleak: {report.resolve()}")

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        """Keep what goes out, and to whom."""
        self._sent, self._grid = arrays, grid
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._asked = [message.metadata.dst_node_id for message in messages]
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Record and attack what came in, and delegate."""
        received = list(replies)
        assert self._directory is not None
        assert self._grid is not None
        self._directory.learn(self._asked)
        known = [reply for reply in received if self._directory.knows(reply.metadata.src_node_id)]
        asked = [node for node in self._asked if self._directory.knows(node)]
        clients = [self._directory.partition(node) for node in asked]
        good, failures = sift(known, self._sent, self._directory, clients, _PLAUSIBLE)
        contents = [reply.content for reply in received if not reply.has_error()]
        self._row = {
            "clients": sorted(clients),
            "failures": [vars(failure) for failure in failures],
            "bytes_received": sum(record.count_bytes() for content in contents for record in content.array_records.values()),
            "attack_seconds": 0.0,
        }
        if not known:
            print(
                f"fedleak: no client of round {server_round} said which partition it holds, so none is attacked; add "
                f"fedleak.answer(app, ...) to the ClientApp ({'; '.join(self._directory.silent[:1]) or 'no answer'})"
            )
        if good:
            most = max(int(next(iter(reply.content.metric_records.values()))["num-examples"]) for reply in good.values())  # type: ignore[arg-type]
            spy = self._spy_for(most)
            spy.look(server_round, self._sent, asked, known, self._grid)
            self._row["attack_seconds"] = round(spy.seconds, 4)
        return super().aggregate_train(server_round, received)

    def _spy_for(self, most_examples: int) -> Spy:
        if self._spy is None or most_examples > self._most_examples:
            self._most_examples = max(most_examples, self._most_examples)
            data = self._data()
            if self.folder is None:
                federation = {"clients": len(self._asked), "clients_per_round": None, "rounds": self._rounds}
                updated = self._scenario.federation.model_copy(update=federation)
                self._scenario = self._scenario.model_copy(update={"federation": updated})
                data = self._data()
                manifest = make_manifest(Checked(self._scenario, data, self._model), self._device)
                self.folder = RunFolder.create(self._place, manifest | {"engine": OWN_APP})
                self.folder.append("rounds.jsonl", self._waiting)
            assert self._directory is not None
            self._spy = Spy(
                self._scenario,
                self.folder,
                self._directory,
                self._model,
                input=self._input,
                mean_image=data.mean_image(),
                most_examples=self._most_examples,
                device=self._device,
                listener=self._listener,
            )
        return self._spy

    def _data(self) -> FederatedData:
        sizes = (np.arange(max(1, self._most_examples), dtype=np.int64),) * self._scenario.federation.clients
        return FederatedData(_Own(self._input, self._class_names), self._input, sizes)

    def _close(self, server_round: int, arrays: ArrayRecord, metrics: MetricRecord | None) -> None:
        row: Row = {"round": server_round, **{key: _number(metrics, key) for key in ("accuracy", "loss")}, "memory": memory()}
        if server_round:
            spent = self._row.get("attack_seconds", 0.0)
            row |= {"seconds": round(time.perf_counter() - self._since - spent, 4), **self._row}
        self._since, self._row = time.perf_counter(), {}
        if self.folder is None:
            self._waiting.append(row)
            return
        self.folder.append("rounds.jsonl", [row])
        self.folder.save_checkpoint(server_round, {f"model/{key}": array.numpy() for key, array in arrays.items()}, {})
        self._listener(Event("round-done", row))


class _Own(Source):
    """The user's data: on their clients, and nowhere else."""

    name = "own"

    def __init__(self, input: InputSpec, class_names: tuple[str, ...]) -> None:
        self.train, self.test = Withheld(), None
        self.class_names, self.mean, self.std = class_names, (0.5,) * input.shape[0], (0.5,) * input.shape[0]


def _number(metrics: MetricRecord | None, key: str) -> float | None:
    value = metrics.get(key) if metrics is not None else None
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None
