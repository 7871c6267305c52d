"""The attack side of a curious server: records every round, attacks it, and has the results graded by the clients."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor, nn

from fedleak.attacks.base import Attack, Progress, Reconstruction, attacks
from fedleak.defenses.secagg_view import only_sums
from fedleak.defenses.secure_aggregation import secure_aggregation
from fedleak.events import Event, Listener, silent
from fedleak.modalities.image import InputSpec
from fedleak.observation import Observation
from fedleak.positions.grading import Grader, failed_row
from fedleak.positions.observing import observe_reply
from fedleak.printable import one_line
from fedleak.runs.folder import PROBLEMS, Row, RunFolder
from fedleak.sandbox.strike import attackers_seed, groups, show, strike
from fedleak.scenario.schema import AttackSpec, Scenario
from fedleak.threat import Knowledge
from fedleak.wire.cohort import cohort_of, mean_reply
from fedleak.wire.directory import Directory
from fedleak.wire.replies import Failure, sift

_LONGEST = 300  # characters of what an attack says went wrong


class Spy:
    """Look at each round's replies: save the observations, attack them, write the graded rows.

    Parameters
    ----------
    scenario : Scenario
        Which attacks, at which rounds, and what they may know.
    folder : RunFolder
        Takes captures, images and rows.
    directory : Directory
        Which node holds which partition.
    model : Module
        Of the architecture that the clients train.
    input : InputSpec
        What the model takes.
    mean_image : Tensor
        (C, H, W), the public baseline.
    most_examples : int
        A reply that claims more images than this is no observation.
    surrogate : Tensor, optional
        Public images (N, C, H, W) in [0, 1].
    device : str
        Where attacks compute.
    listener : Listener
        Told what happens.
    rows : str
        Name of the folder's file that takes the rows.
    problems : str
        Name of the one that takes what attacks could not be shown.

    Attributes
    ----------
    seconds : float
        Wall time spent looking at the latest round.
    surrogate : Tensor or None
        As given.
    attacks : list of (AttackSpec, Attack)
        The scenario's, in its order.
    """

    def __init__(
        self,
        scenario: Scenario,
        folder: RunFolder,
        directory: Directory,
        model: nn.Module,
        *,
        input: InputSpec,
        mean_image: Tensor,
        most_examples: int,
        surrogate: Tensor | None = None,
        device: str = "cpu",
        listener: Listener = silent,
        rows: str = "reconstructions.jsonl",
        problems: str = PROBLEMS,
    ) -> None:
        self.seconds = 0.0
        self._scenario = scenario
        self._rows = rows
        self._problems = problems
        self._folder = folder
        self._directory = directory
        self._model = model
        self._input = input
        self._most_examples = most_examples
        self.surrogate = surrogate
        self._threads = torch.get_num_threads()
        self._device = device
        self._listener = listener
        self._summed, self._viewed = secure_aggregation(scenario) is not None, only_sums(scenario)
        self._buffers = frozenset(model.state_dict()) - {name for name, _ in model.named_parameters()}
        self.attacks = [(spec, attacks.get(spec.name)(**spec.parameters)) for spec in scenario.attacks]
        self._grader = Grader(scenario, folder, directory, mean_image, most_examples)

    def look(self, server_round: int, sent: ArrayRecord, asked: list[int], replies: list[Message], grid: Grid) -> None:
        """Record and attack one round; whatever goes wrong becomes a row, never an exception."""
        started = time.perf_counter()
        clients = [self._directory.partition(node) for node in asked]
        good, failures = sift(replies, sent, self._directory, clients, self._most_examples, summed=self._summed)
        self.record_failures(server_round, failures)
        if self._viewed and not self._summed:
            # With fewer than a majority, SecAgg+ by its default threshold would have no sum to show either.
            good = {min(good): mean_reply(good)} if len(good) > len(clients) // 2 else {}
        remembered = any(attack.remembers for _, attack in self.attacks)
        if remembered or self._scenario.server.captures == "all" or self._scenario.attacked(server_round):
            most = len(good) if remembered else self._attacked(server_round, len(good))
            observations: list[Observation] = []
            for observation in self._observe(server_round, sent, good, grid):
                self._folder.save_capture(observation)
                if len(observations) < most:  # the others are written, and not held
                    observations.append(observation)
            self.attack(server_round, observations, grid)
        self.seconds = time.perf_counter() - started

    def _attacked(self, server_round: int, clients: int) -> int:
        """Return how many of a round's observations the attacks look at: always the first."""
        wanted = [spec.clients for spec, _ in self.attacks if spec.strikes(server_round)]
        return max((clients if most == "all" else min(most, clients) for most in wanted), default=0)

    def recall(self) -> None:
        """Show the attacks the rounds that an earlier process saw."""
        if any(attack.remembers for _, attack in self.attacks):
            for path in self._folder.captures():
                observation = self.complete(Observation.load(path))
                self.remember(observation.round, [observation])

    def complete(self, observation: Observation) -> Observation:
        """Return a saved observation with the public images that the threat model grants, which are not saved."""
        return replace(observation, surrogate=self.surrogate)

    def attack(self, server_round: int, observations: Sequence[Observation], grid: Grid) -> None:
        """Run every attack that strikes in this round on ``observations``, and write graded rows."""
        for spec, attack in self.attacks:
            if not spec.strikes(server_round):
                continue
            struck = groups(spec, attack, observations)
            for number, group in enumerate(struck, start=1):
                self._tell("attack", attack=spec.result_name, round=server_round, number=number, total=len(struck))
                results = strike(
                    attack,
                    group,
                    self._model,
                    seed=attackers_seed(self._scenario.seed),
                    device=self._device,
                    threads=self._threads,
                    limit=self._scenario.server.attack_limit,
                    progress=self._progress,
                )
                for observation, result in zip(group, results, strict=True):
                    self.grade(spec, attack, observation, result, grid, self._keep)
        self.remember(server_round, observations)

    def grade(
        self,
        spec: AttackSpec,
        attack: Attack,
        observation: Observation,
        result: Reconstruction,
        grid: Grid,
        keep: Callable[[list[Row]], None],
    ) -> None:
        """Have the clients grade what ``attack`` made of ``observation``, and have the rows kept before it is told."""
        named = replace(result, attack=spec.result_name)
        rows = self._grader.grade(observation, named, self._model, grid, models_steps=attack.models_local_steps)
        keep(rows)
        self._tell("graded", attack=spec.result_name, round=observation.round, client=observation.client, rows=rows)

    def remember(self, server_round: int, observations: Sequence[Observation]) -> None:
        """Show a round that is over to the attacks that keep what they saw."""
        for spec, attack in self.attacks:
            if (error := show(attack, observations, self._threads, self._scenario.server.attack_limit)) is not None:
                self.report(spec, server_round, error, lambda row: self._folder.append(self._problems, [row]))

    def report(self, spec: AttackSpec, server_round: int, error: str, keep: Callable[[Row], None]) -> None:
        """Have it kept, and tell, that an attack broke off when it was shown a round."""
        row: Row = {"round": server_round, "client": None, "attack": spec.result_name, "error": one_line(error, _LONGEST)}
        # After an interrupt the rounds before are shown again.
        if row not in self._folder.rows(self._problems):
            keep(row)
        self._tell("problem", **row)

    def record_failures(self, server_round: int, failures: Sequence[Failure]) -> None:
        """Write a row for every client that gave an attack of this round nothing to attack."""
        self._keep(self.failed(server_round, failures))

    def failed(self, server_round: int, failures: Sequence[Failure]) -> list[Row]:
        """Return a row for every attack of this round and client that gave it nothing to attack."""
        return [
            failed_row(
                self._scenario,
                spec.result_name,
                server_round,
                failure.client,
                f"invalid reply: {failure.reason}",
                ["invalid-reply"],
            )
            for spec, _ in self.attacks
            if spec.strikes(server_round)
            for failure in failures
        ]

    def _observe(self, server_round: int, sent: ArrayRecord, good: dict[int, Message], grid: Grid) -> Iterator[Observation]:
        cohorts = {client: cohort_of(reply) if self._viewed else () for client, reply in good.items()}
        labels = self._labels(server_round, [one for client in good for one in cohorts[client] or (client,)], grid)
        parameters = sent.to_torch_state_dict()
        for client, reply in good.items():
            yield observe_reply(
                self._scenario,
                reply,
                parameters,
                buffers=self._buffers,
                input=self._input,
                server_round=server_round,
                client=client,
                clients=cohorts[client],
                labels=_together([labels.get(one) for one in cohorts[client] or (client,)]),
                surrogate=self.surrogate,
            )

    def _labels(self, server_round: int, clients: Iterable[int], grid: Grid) -> dict[int, tuple[int, ...]]:
        """Ask the clients for their labels, which this threat model grants to the attacker."""
        if Knowledge.LABELS not in self._scenario.threat.granted:
            return {}
        config = ConfigRecord({"server-round": server_round})
        questions = [
            Message(RecordDict({"config": config}), dst_node_id=self._directory.node(client), message_type="query.labels")
            for client in clients
        ]
        labels: dict[int, tuple[int, ...]] = {}
        for answer in grid.send_and_receive(questions, timeout=self._scenario.federation.timeout):
            if not answer.has_error() and "facts" in answer.content.metric_records:
                facts: Any = answer.content.metric_records["facts"].get("labels")
                if isinstance(facts, list) and all(isinstance(label, int) for label in facts):
                    labels[self._directory.partition(answer.metadata.src_node_id)] = tuple(facts)
        return labels

    def _keep(self, rows: list[Row]) -> None:
        self._folder.append(self._rows, rows)

    def _progress(self, progress: Progress) -> None:
        self._tell("progress", **vars(progress))

    def _tell(self, kind: str, **facts: Any) -> None:
        self._listener(Event(kind, facts))


def _together(labels: Iterable[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """Return all labels of a cohort, sorted; ``None`` if a client did not tell its own."""
    found: list[int] = []
    for own in labels:
        if own is None:
            return None
        found += own
    return tuple(sorted(found))
