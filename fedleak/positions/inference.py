"""What the updates tell where no image comes back: labels, whether candidates took part, how far the data are from public ones.

A curious server does this after its attacks, from the same observations. Who of the candidates is a member the test is not told:
the clients' images and the others are put in a random order, and their scores are set against the truth afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor, nn

from fedleak.attacks.labels.reading import read_labels
from fedleak.attacks.membership.base import Examples, MembershipCase, membership_tests
from fedleak.errors import FedleakError, ReplyError
from fedleak.evaluation.distance import distance
from fedleak.events import Event, Listener, silent
from fedleak.observation import Observation
from fedleak.positions.terms import Terms
from fedleak.printable import one_line
from fedleak.runs.folder import INFERENCES, Row, RunFolder
from fedleak.sandbox.quarantine import quarantine
from fedleak.scenario.evaluation import Evaluation, Membership
from fedleak.seeding import Seed
from fedleak.threat import Knowledge
from fedleak.wire.arrays import decoded
from fedleak.wire.directory import Directory

COMPARED = 64
"""Public images that an update's distance is told by."""
MOST_CLIENTS = 32
"""Updates of one round that are read where nothing else is asked for."""
_LONGEST = 300
_ID = 12  # hexadecimal digits that name a candidate


@dataclass(frozen=True)
class PublicExamples:
    """Images that no client holds.

    Attributes
    ----------
    reference : Examples or None
        What updates are compared with.
    others : Examples or None
        Candidates that are surely no members; without them other clients' images are taken.
    """

    reference: Examples | None = None
    others: Examples | None = None


class Inference:
    """Reads what is asked for off each round's observations; whatever goes wrong becomes a row's error.

    Parameters
    ----------
    terms : Terms
        What the attacker is granted, and how long to wait.
    asked : Evaluation
        What to read.
    folder : RunFolder
        Takes the rows.
    directory : Directory
        Which node holds which partition.
    model : Module
        Of the architecture that the clients train.
    public : callable
        Returns what is known of others; called once, when it is first needed.
    struck : callable
        From a round to how many of its updates attacks strike, always the first; ``None`` for all.
    rounds : int
        Of the training.
    seed : Seed
        Of the candidates' order and of public batches.
    listener : Listener
        Told what is done.
    """

    def __init__(
        self,
        terms: Terms,
        asked: Evaluation,
        folder: RunFolder,
        directory: Directory,
        model: nn.Module,
        public: Callable[[], PublicExamples],
        *,
        struck: Callable[[int], int | None],
        rounds: int,
        seed: Seed,
        listener: Listener = silent,
    ) -> None:
        self._terms, self._asked = terms, asked
        self._folder, self._directory = folder, directory
        self._model, self._find_public = model, public
        self._struck, self._rounds = struck, rounds
        self._seed, self._listener = seed, listener
        self._at: Tensor | None = None
        self._known: dict[int, Tensor] = {}

    @cached_property
    def _public(self) -> PublicExamples:
        return self._find_public()

    def due(self, server_round: int) -> bool:
        """Say whether anything is read off the updates of a round."""
        return self.wanted(server_round) != 0

    def wanted(self, server_round: int) -> int | None:
        """Return how many of a round's observations are read, always the first; ``None`` for all."""
        tested, read = self._tested(server_round), self._read(server_round)
        return None if tested is None else max(tested, read)

    def _tested(self, server_round: int) -> int | None:
        membership = self._asked.membership
        if membership is None or not membership.due(server_round):
            return 0
        return None if membership.clients == "all" else membership.clients

    def _read(self, server_round: int) -> int:
        if self._asked.inference == "none":
            return 0
        struck = None if self._asked.inference == "all" else self._struck(server_round)
        return MOST_CLIENTS if struck is None else min(struck, MOST_CLIENTS)

    def look(self, server_round: int, observations: Sequence[Observation], grid: Grid) -> None:
        """Read a round's observations, and keep a row for each that is read."""
        tested, read = self._tested(server_round), self._read(server_round)
        pool: dict[int, _Own | str] | None = None
        for number, observation in enumerate(observations):
            testing, reading = tested is None or number < tested, number < read
            if not testing and not reading:
                return
            if testing and pool is None:
                pool = self._ask(observations[:tested], grid)
            row = self._row(observation, grid, pool or {}, testing=testing, reading=reading)
            self._folder.append(INFERENCES, [row])
            self._listener(Event("inference", row))

    def _row(self, observation: Observation, grid: Grid, pool: dict[int, _Own | str], *, testing: bool, reading: bool) -> Row:
        row: Row = {
            "round": observation.round,
            "client": observation.client,
            "kind": observation.kind,
            "cohort": list(observation.clients) or None,
            "examples": observation.local.num_examples if observation.local is not None else None,
        }
        row |= {"labels": self._labels(observation, grid), "distance": self._distance(observation)} if reading else {}
        return row | ({"membership": self._membership(observation, pool)} if testing else {})

    def _labels(self, observation: Observation, grid: Grid) -> Row:
        """Return the labels that are read off the update, and what share of them the client says is right."""

        def read() -> Row:
            rule, labels = read_labels(observation, self._model)
            return {"rule": rule, "labels": list(labels), "error": None}

        found = _guarded(read, self._seed)
        if found["error"] is None:
            found["right"] = None if observation.clients else self._right(observation, found["labels"], grid)
        return found

    def _right(self, observation: Observation, labels: list[int], grid: Grid) -> float | None:
        config = ConfigRecord({"server-round": observation.round, "labels": labels})
        question = Message(
            RecordDict({"config": config}), dst_node_id=self._directory.node(observation.client), message_type="query.counts"
        )
        for reply in grid.send_and_receive([question], timeout=self._terms.timeout):
            if not reply.has_error() and "facts" in reply.content.metric_records:
                share: Any = reply.content.metric_records["facts"].get("label-counts")
                return float(share) if isinstance(share, int | float) and 0 <= share <= 1 else None
        return None

    def _distance(self, observation: Observation) -> Row | None:
        """Return how far the update is from public ones; ``None`` where there are none, or it cannot be told."""
        if observation.local is None or self._public.reference is None:
            return None
        size = observation.local.num_examples
        reference = first(self._public.reference, COMPARED)

        def measured() -> Row:
            case = self._case(observation, reference, reference)
            seed = self._seed.derive("distance", observation.round, observation.client)
            return {**(distance(case.public, case.update, size, seed) or {}), "error": None}

        return _guarded(measured, self._seed)

    def _case(self, observation: Observation, candidates: Examples, reference: Examples | None) -> MembershipCase:
        """Return an update's case; the updates of a round share the weights that were sent, and with them public gradients."""
        sent = next(iter(observation.parameters.values()))
        if self._at is not sent:
            self._at, self._known = sent, {}
        return MembershipCase(observation, self._model, candidates, reference, self._known)

    def _membership(self, observation: Observation, pool: dict[int, _Own | str]) -> list[Row]:
        asked = self._asked.membership
        assert asked is not None
        names = [spec.name for spec in asked.tests]
        try:
            candidates, ids, member, source = self._mixed(observation, pool, asked)
        except ReplyError as error:
            return [{"test": name, "error": str(error)} for name in names]
        granted = Knowledge.SURROGATE in self._terms.granted
        case = self._case(observation, candidates, self._public.reference if granted else None)
        rows = []
        for spec in asked.tests:

            def judged(name: str = spec.name, parameters: dict[str, Any] = spec.parameters) -> Row:
                evidence = membership_tests.get(name)(**parameters).judge(case)
                called = [None] * len(ids) if evidence.called is None else evidence.called.tolist()
                told = zip(ids, member, evidence.scores.tolist(), called, strict=True)
                keys = ("id", "member", "score", "called")
                return {"others_from": source, "candidates": [dict(zip(keys, one, strict=True)) for one in told], "error": None}

            rows.append({"test": spec.name, **_guarded(judged, self._seed)})
        return rows

    def _mixed(
        self, observation: Observation, pool: dict[int, _Own | str], asked: Membership
    ) -> tuple[Examples, list[str], list[bool | None], str]:
        """Return candidates in random order, their names, and what the test is not told: who is a member."""
        own: list[_Own] = []
        for client in observation.cohort:
            found = pool.get(client, "no answer")
            if isinstance(found, str):
                raise ReplyError(f"client {client} gave no candidates: {found}")
            own.append(found)
        if self._public.others is not None:
            others, source = [self._public.others], "public images"
        else:
            others = [
                one.examples for client, one in pool.items() if client not in observation.cohort and not isinstance(one, str)
            ]
            source = "other clients' images"
        if not others:
            raise ReplyError("there are no images of others to compare with: no test split, and no other client's")
        others = [first(together(others), asked.others)]
        examples = together([*(one.examples for one in own), *others])
        truth: list[bool | None] = [True if used else None for one in own for used in one.used]
        truth += [False] * (len(examples) - len(truth))
        seed = self._seed.derive("candidates", observation.round, observation.client)
        order = torch.randperm(len(examples), generator=seed.generator())
        ids = [_named(examples.images[place], int(examples.labels[place])) for place in order]
        return Examples(examples.images[order], examples.labels[order]), ids, [truth[place] for place in order], source

    def _ask(self, observations: Sequence[Observation], grid: Grid) -> dict[int, _Own | str]:
        """Return each client's candidates, or why there are none."""
        asked = self._asked.membership
        assert asked is not None
        clients = [client for observation in observations for client in observation.cohort]
        rounds = [one for one in range(1, self._rounds + 1) if asked.due(one)]
        config = ConfigRecord({"server-round": observations[0].round, "rounds": rounds, "most": asked.members})
        questions = [
            Message(RecordDict({"config": config}), dst_node_id=self._directory.node(client), message_type="query.candidates")
            for client in clients
        ]
        found: dict[int, _Own | str] = dict.fromkeys(clients, "no answer")
        for reply in grid.send_and_receive(questions, timeout=self._terms.timeout):
            client = self._directory.partition(reply.metadata.src_node_id)
            try:
                found[client] = _read(reply, observations[0])
            except ReplyError as error:
                found[client] = one_line(str(error), _LONGEST)
        return found


@dataclass(frozen=True)
class _Own:
    """A client's images, and which of them are behind the round's update."""

    examples: Examples
    used: list[bool]


def together(several: Sequence[Examples]) -> Examples:
    """Return examples one after another."""
    return Examples(torch.cat([one.images for one in several]), torch.cat([one.labels for one in several]))


def first(examples: Examples, most: int) -> Examples:
    """Return at most so many, evenly spread."""
    chosen = torch.linspace(0, len(examples) - 1, min(most, len(examples))).round().long()
    return Examples(examples.images[chosen], examples.labels[chosen])


def _read(reply: Message, observation: Observation) -> _Own:
    if reply.has_error():
        raise ReplyError(str(reply.error.reason))
    spec = observation.input
    try:
        images = torch.from_numpy(decoded(spec.content, reply.content.array_records["candidates"][spec.content]).copy())
        facts: Any = reply.content.metric_records["facts"]
        labels, used = list(facts["labels"]), [bool(one) for one in facts["used"]]
    except KeyError as error:
        raise ReplyError(f"its answer holds no {error}") from error
    kind = getattr(torch, spec.dtype)
    right = tuple(images.shape[1:]) == tuple(spec.shape) and images.is_floating_point() == kind.is_floating_point
    if not right or len({len(images), len(labels), len(used)}) != 1 or not all(0 <= one < spec.num_classes for one in labels):
        raise ReplyError(f"its candidates are {tuple(images.shape)} images, {len(labels)} labels and {len(used)} answers")
    return _Own(Examples(images.to(kind), torch.tensor(labels, dtype=torch.long)), used)


def _named(image: Tensor, label: int) -> str:
    content = image.contiguous().numpy().tobytes() + bytes([label % 256])
    return hashlib.sha256(content).hexdigest()[:_ID]


def _guarded(call: Callable[[], Row], seed: Seed) -> Row:
    """Return what a plugin makes of an update, or why there is nothing; what it does to the process is undone."""
    try:
        with quarantine(torch.get_num_threads()), seed.isolated():
            return call()
    except FedleakError as error:
        return {"error": one_line(str(error), _LONGEST)}
    # A user's network or a plugin by anybody may raise anything, and the federation must go on.
    except Exception as error:  # noqa: BLE001
        return {"error": one_line(f"{type(error).__name__}: {error}", _LONGEST)}
