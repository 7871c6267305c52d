"""An audit beside somebody's training: what goes out and comes back is seen, attacked, graded and reported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fedleak.apps.asked import Asked as Asked
from fedleak.apps.careful import (
    CarefulAttackers,
    CarefulBooks,
    CarefulGrader,
    CarefulInference,
    CarefulRecorder,
    careful_listener,
)
from fedleak.apps.guard import Guard
from fedleak.apps.inbox import Inbox
from fedleak.apps.questions import QuestionGrid
from fedleak.data.base import Source
from fedleak.data.federated import FederatedData
from fedleak.data.shards import Withheld
from fedleak.errors import FedleakError
from fedleak.evaluation.privacy import Accountant
from fedleak.experiment.check import Checked
from fedleak.experiment.manifest import make_manifest, write_summary
from fedleak.modalities.image.measure import MEAN_IMAGE
from fedleak.payload import Payload
from fedleak.positions.base import Honest, Position
from fedleak.positions.campaign import Campaign
from fedleak.positions.honest_but_curious import HonestButCurious
from fedleak.positions.inference import PublicExamples
from fedleak.positions.oracle import LabelOracle
from fedleak.positions.terms import Terms
from fedleak.printable import clean_log, plural
from fedleak.report.html import write_report
from fedleak.runs.folder import OWN_APP, PROBLEMS, Row, RunFolder
from fedleak.sandbox.limit import wall_limit
from fedleak.sandbox.select import attackers_for, built_attacks
from fedleak.seeding import Seed
from fedleak.server.ledger import Ledger
from fedleak.wire.received import NOT_ATTACKED, Failure, Received

_PATIENCE = 600.0  # seconds that clients are given to answer a question, at most
_REPORT = 600.0  # seconds that the report may take
_QUESTIONS = 5  # at most so many are asked for one attack


class AppFolder(RunFolder):
    """A run folder that the app goes on without where it cannot be written."""

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FedleakError(f"{self.path}: cannot be written ({error.strerror})") from error


@dataclass
class _Seen:
    """What the ledger is told of a round."""

    asked: list[int]
    failures: tuple[Failure, ...]
    bytes_received: int
    position: Position


class Audit:
    """Looks on while an app trains; nothing that happens here ends or changes that.

    Parameters
    ----------
    asked : Asked
        What for.

    Attributes
    ----------
    asked : Asked
        As given.
    folder : RunFolder or None
        The run folder, once training has begun.
    report : Path or None
        The page, once it has ended.
    """

    def __init__(self, asked: Asked) -> None:
        self.folder: RunFolder | None = None
        self.report: Path | None = None
        self._guard = Guard(self._fault)
        self.know(asked)
        self._seen = _Seen([], (), 0, Honest())
        self._listener = careful_listener(asked.listener, self._fault)
        self._ledger = Ledger(self._seen, listener=self._listener)
        self._grid: Grid | None = None
        self._position: HonestButCurious | None = None
        self._books: CarefulBooks | None = None
        self._grader: CarefulGrader | None = None
        self._accounts: dict[int, Accountant] = {}
        self._patience, self._round, self._rounds, self._most = _PATIENCE, 0, 1, 0
        self._arrays = ArrayRecord()
        self._open: tuple[int, ArrayRecord] | None = None
        self._evaluated = False
        self._clients: set[int] = set()
        self._said: set[str] = set()
        self._unwritten: list[Row] = []

    def know(self, asked: Asked) -> None:
        """Take what was asked for, with more known of it: before the first round."""
        self.asked, self._scenario = asked, asked.scenario
        self._inbox = Inbox(asked.model, asked.input, asked.keys, asked.scenario.local.batch_size, self._odd, asked.names)

    def begin(self, grid: Grid | None, arrays: ArrayRecord, rounds: int, timeout: float | None, *, evaluated: bool) -> None:
        """Make the run folder and all that the rounds need.

        Parameters
        ----------
        grid : Grid, optional
            The app's own, where it is known by then.
        arrays : ArrayRecord
            The initial model.
        rounds : int
            How many are to come.
        timeout : float, optional
            Seconds that the app waits for its clients.
        evaluated : bool
            Whether the server evaluates the model of each round, which :meth:`measured` is told of.
        """
        self._grid, self._rounds, self._arrays, self._evaluated = grid, rounds, arrays, evaluated
        self._patience = min(_PATIENCE, timeout or _PATIENCE)
        self._guard.run("making the run folder", self._make_folder)
        if self.folder is not None:
            self._guard.run("preparing the attacks", self._arm)
        if not evaluated:
            self._close(0, arrays, None)

    def sent(self, server_round: int, messages: list[Message], grid: Grid) -> None:
        """Keep what goes out to train in a round."""
        self._settle()
        self._round, self._grid = server_round, grid
        self._guard.run("reading what is sent", lambda: self._inbox.send(messages))

    def received(self, server_round: int, replies: list[Message]) -> None:
        """Record, attack and have graded what came back."""
        self._round = server_round
        self._seen.asked, self._seen.failures, self._seen.bytes_received = self._inbox.asked, (), 0
        self._seen.position.seconds = 0.0
        self._guard.run("looking into the replies", lambda: self._look(server_round, replies), self._seconds(len(replies)))

    def aggregated(self, server_round: int, arrays: ArrayRecord | None) -> None:
        """Close a round that trained the model, unless it is evaluated first."""
        self._arrays = self._arrays if arrays is None else arrays
        self._open = server_round, self._arrays
        if not self._evaluated:
            self._settle()

    def measured(self, server_round: int, arrays: ArrayRecord, metrics: MetricRecord | None) -> None:
        """Close a round with what the server found of its model; 0 is the initial one."""
        self._open = None
        self._close(server_round, arrays, metrics)

    def end(self) -> None:
        """Write the summary and the report, whatever became of the training."""
        self._guard.interrupt(self._disarm)
        if self.folder is None:
            return
        folder = self.folder
        self._guard.run("ending the attacks", self._disarm)
        self._settle()
        if not self._round:
            self._fault(
                "the strategy's start()", "it called neither configure_train nor aggregate_train, so that no update was seen"
            )
        self._guard.run("writing what had waited", self._write_rest, anyway=True)
        self._guard.run("writing the summary", lambda: write_summary(folder), _REPORT, anyway=True)
        self.report = self._guard.run("writing the report", lambda: write_report(folder.path), _REPORT, anyway=True)
        self._say(str(self.report.resolve()) if self.report is not None else f"{folder.path.resolve()}: holds no report")

    def _make_folder(self) -> None:
        clean_log()  # a user's strategy is shown what clients said as they said it, and may log it
        nodes = len(list(self._grid.get_node_ids())) if self._grid is not None else 0
        manifest = self._manifest(nodes or 1, self._scenario.local.batch_size)
        self.folder = AppFolder.create(self.asked.place, manifest)
        self._ledger.open(self.folder)

    def _manifest(self, clients: int, most_examples: int) -> Row:
        federation = {"clients": clients, "clients_per_round": None, "rounds": self._rounds}
        described = self._scenario.model_copy(update={"federation": self._scenario.federation.model_copy(update=federation)})
        shards = (np.arange(most_examples, dtype=np.int64),) * clients
        data = FederatedData(_Own(self.asked), self.asked.input, shards)
        return make_manifest(Checked(described, data, self.asked.model), self.asked.device) | {"engine": OWN_APP}

    def _arm(self) -> None:
        asked, scenario, terms = self.asked, self._scenario, Terms.of(self._scenario)
        assert self.folder is not None
        nodes, public = self._inbox.nodes, asked.public
        # Where nothing public is known of the user's images, their mean is taken to be grey.
        mean = torch.full(asked.input.shape, 0.5) if public is None else public.mean(0)
        self._books = CarefulBooks(self.folder, self._fault)
        self._grader = CarefulGrader(terms, self.folder, nodes, asked.input, {MEAN_IMAGE: mean}, scenario.local.batch_size)
        oracle, payload = LabelOracle(terms, nodes), Payload.of(asked.model, scenario.federation.payload)
        recorder = CarefulRecorder(
            terms, self.folder, oracle, input=asked.input, payload=payload, surrogate=public, names=asked.names
        )
        recorder.fault = self._fault
        attackers = attackers_for(
            scenario, asked.model, asked.input, public=public, device=asked.device, maker=asked.maker or None
        )
        campaign = Campaign(
            scenario.attacks,
            asked.model,
            self._grader,
            self._books,
            CarefulAttackers(attackers, self._guard.stopped.is_set),
            recall=recorder.recall,
            listener=self._listener,
        )
        inference = CarefulInference(
            terms,
            scenario.evaluation,
            self.folder,
            nodes,
            asked.model,
            PublicExamples,
            struck=scenario.struck,
            rounds=self._rounds,
            seed=Seed(scenario.seed).derive("inference"),
            listener=self._listener,
        )
        inference.fault = self._fault
        self._position = HonestButCurious(recorder, campaign, inference=inference)
        self._seen.position = self._position

    def _disarm(self) -> None:
        if self._position is not None:
            self._position.close()

    def _look(self, server_round: int, replies: list[Message]) -> None:
        assert self._grid is not None
        grid = QuestionGrid(self._grid, self._inbox.config, self._patience, self._guard.stopped)
        grid.round = server_round
        received = self._inbox.read(server_round, replies, grid.send_and_receive)
        self._seen.asked, self._seen.failures = received.asked, received.failures
        self._seen.bytes_received = received.bytes
        self._name(received)
        self._widen(received)
        if self._position is not None:
            self._position.see(received, grid)

    def _name(self, received: Received) -> None:
        """Say of each client that is not attacked why, each reason once."""
        by_reason: dict[str, list[int]] = {}
        for failure in received.failures:
            by_reason.setdefault(failure.reason, []).append(failure.client)
        for reason, clients in by_reason.items():
            who = f"client {clients[0]}" if len(clients) == 1 else f"{len(clients)} of {plural(len(received.sent), 'client')}"
            if reason not in self._said:
                self._say(f"round {received.round}: {who} not attacked: {reason.removeprefix(NOT_ATTACKED)}")
            self._said.add(reason)

    def _widen(self, received: Received) -> None:
        """Say in the manifest how many clients there are and how much they hold, once that shows."""
        most = max((reply.examples for reply in received.good.values()), default=0)
        known = self._clients | set(received.sent)
        if self.folder is not None and (most > self._most or known != self._clients):
            self._most = max(most, self._most)
            self._clients = known
            shown = self._manifest(len(known), self._most or self._scenario.local.batch_size)
            self.folder.write_json("manifest.json", shown | {"created": self.folder.manifest["created"]})
        if self._grader is not None:
            self._grader.most_examples = max(most, self._grader.most_examples)
        for client, reply in received.good.items():
            if client not in self._accounts:
                self._accounts[client] = Accountant(self._scenario, [reply.examples])
        for client in received.asked:
            if client in self._accounts:
                self._accounts[client].took_part(received.round, [0])

    def _privacy(self) -> Row:
        """Return what a round's line says of the privacy that the declared defenses spent."""
        rows = {client: self._accounts[client].row([0]) for client in self._seen.asked if client in self._accounts}
        told = [row for row in rows.values() if row]
        if not told:
            return {}
        return told[0] | {"epsilon": {str(client): row["epsilon"]["0"] for client, row in rows.items() if row}}

    def _settle(self) -> None:
        """Close the round that waits for its evaluation, if one does."""
        if self._open is not None:
            (server_round, arrays), self._open = self._open, None
            self._close(server_round, arrays, None)

    def _close(self, server_round: int, arrays: ArrayRecord, metrics: MetricRecord | None) -> None:
        def write() -> None:
            measured = {key: _number(metrics, key) for key in ("accuracy", "loss")}
            self._ledger.close(server_round, arrays, measured, self._privacy() if server_round else {})

        self._guard.run("writing the round's line", write)

    def _write_rest(self) -> None:
        assert self.folder is not None
        self._ledger.open(self.folder)
        if self._books is not None:
            self._books.keep([])
        rows, self._unwritten = self._unwritten, []
        self.folder.append(PROBLEMS, rows)

    def _seconds(self, updates: int) -> float | None:
        """Return the seconds after which a round's attacks cannot be at work any more, unless something hangs."""
        limit, total = self._scenario.server.attack_limit, _PATIENCE + self._patience
        for attack in built_attacks(self._scenario):
            own = wall_limit(attack.config.budget_seconds, limit, updates)
            if own is None:
                return None
            total += own + _QUESTIONS * updates * self._patience
        return total

    def _fault(self, step: str, text: str) -> None:
        self._problem(step, text, f"{step} failed: {text}; training goes on")

    def _odd(self, text: str) -> None:
        self._problem("a reply", text, text)

    def _problem(self, step: str, text: str, line: str) -> None:
        """Say what happened, once, and have it kept."""
        row: Row = {"round": max(1, self._round), "client": None, "attack": "", "step": step, "error": text}
        self._unwritten.append(row)
        if self.folder is not None:
            with suppress(FedleakError):  # it is said below, and tried again at the end
                self.folder.append(PROBLEMS, self._unwritten)
                self._unwritten = []
        if line not in self._said:
            self._said.add(line)
            self._say(f"round {self._round}: {line}" if self._round else line)

    def _say(self, line: str) -> None:
        with suppress(OSError, ValueError):  # nobody listens any more
            print(f"fedleak: {line}", flush=True)


class _Own(Source):
    """The user's data: on their clients, and nowhere else."""

    name = "own"

    def __init__(self, asked: Asked) -> None:
        grey = (0.5,) * asked.input.shape[0]
        self.train, self.test = Withheld(), None
        self.class_names, self.mean, self.std = asked.class_names, grey, grey


def _number(metrics: MetricRecord | None, key: str) -> float | None:
    value = metrics.get(key) if metrics is not None else None
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None
