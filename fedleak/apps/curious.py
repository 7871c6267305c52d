"""The server's side of fedleak in a Flower app of one's own: one line around its strategy."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from fedleak.data.base import Source
from fedleak.data.federated import FederatedData
from fedleak.data.shards import Withheld
from fedleak.errors import FedleakError
from fedleak.events import Listener, silent
from fedleak.experiment.check import Checked, check_derivatives, pick_device
from fedleak.experiment.manifest import default_folder, make_manifest, write_summary
from fedleak.experiment.plugins import build_attack
from fedleak.modalities.image import InputSpec
from fedleak.modalities.image.measure import MEAN_IMAGE
from fedleak.models.base import buffer_names
from fedleak.models.outputs import ready, uncompiled
from fedleak.positions.base import Honest
from fedleak.positions.books import Books
from fedleak.positions.campaign import Campaign
from fedleak.positions.door import Door
from fedleak.positions.grading import Grader
from fedleak.positions.honest_but_curious import HonestButCurious
from fedleak.positions.oracle import LabelOracle
from fedleak.positions.recorder import Recorder
from fedleak.positions.terms import Terms
from fedleak.printable import clean_log, one_line
from fedleak.report.html import write_report
from fedleak.runs.folder import OWN_APP, RunFolder, refuse_existing
from fedleak.sandbox.packing import pack
from fedleak.sandbox.select import attackers_for
from fedleak.scenario.schema import Scenario, parse_scenario
from fedleak.server.ledger import Ledger
from fedleak.threat import Preset
from fedleak.wire.directory import Directory
from fedleak.wire.received import Received
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
    output: str | None = None,
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
    output : str, optional
        Which of the network's outputs are the logits, where it returns more than a tensor and they cannot be told: a key, an
        attribute, or a position in a tuple.
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
        If an attack or a parameter is wrong, the network is no classifier of such images, or an attack cannot differentiate it.
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
    network = ready(model if isinstance(model, nn.Module) else model(), input, output, "fedleak.curious: model")
    local = {"batch_size": batch_size, "learning_rate": learning_rate, "epochs": epochs, "steps": steps}
    scenario = parse_scenario(
        {
            "name": name,
            "seed": seed,
            "data": {"source": "own"},
            "model": {"name": type(network).__name__} | ({"output": output} if output else {}),
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
    check_derivatives(scenario, network, input, pick_device(device))
    place = Path(out) if out is not None else Path(os.environ.get("FEDLEAK_RUNS", "runs")) / default_folder(scenario).name
    refuse_existing(place)
    return Curious(strategy, network, input, scenario, place, pick_device(device), tuple(class_names), listener, _maker(model))


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
        asked: Scenario,
        place: Path,
        device: str,
        class_names: tuple[str, ...],
        listener: Listener,
        maker: str = "",
    ) -> None:
        super().__init__(strategy)
        self._maker = maker
        self.folder: RunFolder | None = None
        self._own = strategy
        self._model, self._input, self._asked = model, input, asked
        self._place, self._device, self._listener = place, device, listener
        self._class_names = class_names or tuple(str(number) for number in range(input.num_classes))

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
        directory = Directory([], 0, lambda messages: grid.send_and_receive(messages, timeout=_PATIENCE))

        def begin(clients: int, most_examples: int) -> tuple[HonestButCurious, Grader]:
            self.folder = self._make_folder(clients, most_examples, num_rounds)
            ledger.open(self.folder)
            return self._attack_side(self.folder, directory, most_examples)

        self._asked = self._reachable()
        latecomer = _Latecomer(directory, begin)
        door = Door(self._own, directory, most_examples=_PLAUSIBLE, position=latecomer)
        ledger = Ledger(door, listener=self._listener)
        self.strategy = door

        def close(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            metrics = evaluate_fn(server_round, arrays) if evaluate_fn is not None else None
            ledger.close(server_round, arrays, {key: _number(metrics, key) for key in ("accuracy", "loss")})
            return metrics

        try:
            return super().start(grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, close)
        finally:
            latecomer.close()
            if self.folder is not None:
                write_summary(self.folder)
                report = write_report(self.folder.path)
                print(f"fedleak: {report.resolve()}")

    def _make_folder(self, clients: int, most_examples: int, rounds: int) -> RunFolder:
        federation = self._asked.federation.model_copy(update={"clients": clients, "clients_per_round": None, "rounds": rounds})
        shards = (np.arange(most_examples, dtype=np.int64),) * clients
        data = FederatedData(_Own(self._input, self._class_names), self._input, shards)
        described = self._asked.model_copy(update={"federation": federation})
        manifest = make_manifest(Checked(described, data, self._model), self._device)
        return RunFolder.create(self._place, manifest | {"engine": OWN_APP})

    def _reachable(self) -> Scenario:
        """Return what is asked, with attacks in the server's process if the network cannot be built in another."""
        asked = self._asked
        if asked.server.isolation == "process":
            try:
                if self._maker.startswith("__main__:"):
                    raise FedleakError("it is of the program that was started, which another process cannot import")
                pack(asked, self._model, self._input, None, self._maker)
            # What makes the network is the user's, and may raise anything when it is called without arguments.
            except Exception as error:  # noqa: BLE001
                print(
                    "fedleak: the network cannot be built in another process, so that attacks run in the server's own "
                    f"({one_line(f'{type(error).__name__}: {error}', 200)}); give curious() a class or function of a module"
                )
                asked = asked.model_copy(update={"server": asked.server.model_copy(update={"isolation": "none"})})
        return asked

    def _attack_side(self, folder: RunFolder, directory: Directory, most_examples: int) -> tuple[HonestButCurious, Grader]:
        terms = Terms.of(self._asked)
        flat = torch.full(self._input.shape, 0.5)  # nothing public is known of the user's images
        grader = Grader(terms, folder, directory, self._input, {MEAN_IMAGE: flat}, most_examples)
        buffers = buffer_names(self._model)
        recorder = Recorder(terms, folder, LabelOracle(terms, directory), input=self._input, buffers=buffers)
        campaign = Campaign(
            self._asked.attacks,
            self._model,
            grader,
            Books(folder),
            attackers_for(self._asked, self._model, self._input, device=self._device, maker=self._maker),
            recall=recorder.recall,
            listener=self._listener,
        )
        return HonestButCurious(recorder, campaign), grader


def _maker(model: nn.Module | Callable[[], nn.Module]) -> str:
    """Return ``module:name`` of what makes the network."""
    made_by = type(uncompiled(model)) if isinstance(model, nn.Module) else model
    return f"{getattr(made_by, '__module__', '')}:{getattr(made_by, '__qualname__', '')}"


class _Latecomer(Honest):
    """Curious from the first usable reply on: only then is it known how many clients there are, and how much they hold.

    Parameters
    ----------
    directory : Directory
        Says why a client did not say which partition it holds.
    begin : callable
        Given the number of clients and the most images that one trained on, returns who looks from then on, and its grader.
    """

    def __init__(self, directory: Directory, begin: Callable[[int, int], tuple[HonestButCurious, Grader]]) -> None:
        self._directory = directory
        self._begin = begin
        self._begun: tuple[HonestButCurious, Grader] | None = None

    def close(self) -> None:
        """End what runs the attacks, if any began."""
        if self._begun is not None:
            self._begun[0].close()

    def see(self, received: Received, grid: Grid) -> None:
        """Name the clients that cannot be attacked, and have the others looked at."""
        self.seconds = 0.0
        asked = len(received.sent) + len(received.strangers)
        if received.strangers:
            print(
                f"fedleak: {len(received.strangers)} of {asked} clients of round {received.round} did not say which partition "
                "they hold, so they are not attacked; add fedleak.answer(app, ...) to the ClientApp "
                f"({'; '.join(self._directory.silent[:1]) or 'no answer'})"
            )
        if received.good:
            most = max(reply.examples for reply in received.good.values())
            if self._begun is None:
                self._begun = self._begin(asked, most)
            position, grader = self._begun
            grader.most_examples = max(most, grader.most_examples)
            position.see(received, grid)
            self.seconds = position.seconds


class _Own(Source):
    """The user's data: on their clients, and nowhere else."""

    name = "own"

    def __init__(self, input: InputSpec, class_names: tuple[str, ...]) -> None:
        self.train, self.test = Withheld(), None
        self.class_names, self.mean, self.std = class_names, (0.5,) * input.shape[0], (0.5,) * input.shape[0]


def _number(metrics: MetricRecord | None, key: str) -> float | None:
    value = metrics.get(key) if metrics is not None else None
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None
