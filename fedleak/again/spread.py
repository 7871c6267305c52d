"""A run's captures attacked again, without the federation: here, in order; or spread over processes or a Ray cluster.

Spread, an order is one strike: a round's updates where the attack takes them together, one update where it does not, and all
rounds where what it saw or made before decides what it makes next. Its results are kept in the run folder until the whole
attack is done, so that the same command goes on after an interrupt or a kill. Grading stays here, where the clients are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

from flwr.serverapp import Grid
from torch import Tensor

from fedleak.again.identity import attack_digest, text_digest
from fedleak.again.orders import Order, Step
from fedleak.again.runners import PLACE, SHARED, Runner
from fedleak.events import Event
from fedleak.observation import Observation
from fedleak.positions.campaign import Campaign
from fedleak.runs.folder import Row, RunFolder
from fedleak.sandbox.packing import Made, decode, tensors_digest
from fedleak.sandbox.strike import failures, groups
from fedleak.server.app import Serving
from fedleak.wire.received import Failure

ROWS = "again.jsonl"
"""Takes the rows of such an attack until it ends, so that an interrupt loses no earlier ones."""
PROBLEMS = "again-problems.jsonl"
"""Likewise, of what could not be shown to an attack."""
_BROKEN = "Some reconstructions broke off; their rows say why. The same command tries them again, and only them."


def attack_here(campaign: Campaign, folder: RunFolder, grid: Grid, public: Tensor | None) -> None:
    """Attack all captures in this process, round by round, and append the rows to ``again.jsonl``.

    ``public`` are the images (N, C, H, W) in [0, 1] that the threat model grants, if it does.
    """
    captured, failed = _rounds(folder)
    for server_round in sorted({*captured, *failed}):
        campaign.record_failures(server_round, failed.get(server_round, []))
        observations = [replace(Observation.load(path), surrogate=public) for path in captured.get(server_round, [])]
        campaign.attack(server_round, observations, grid)


def attack_spread(campaign: Campaign, serving: Serving, grid: Grid, shared: bytes, threads: int, runner: Runner) -> bool:
    """Attack all captures by ``runner``, and append the rows to ``again.jsonl`` in the order that :func:`attack_here` has.

    An order whose process died, or that could not start, gets failed rows; it alone is done when the same attack is asked for
    again.

    Parameters
    ----------
    campaign : Campaign
        Knows the attacks, and has their results graded.
    serving : Serving
        The scenario with these attacks, and its run folder.
    grid : Grid
        Reaches the clients.
    shared : bytes
        What all orders share; see :func:`fedleak.sandbox.packing.pack`.
    threads : int
        Of each order's computations.
    runner : Runner
        Does the orders.

    Returns
    -------
    bool
        Whether all orders came to an end, so that nothing of them need be kept.
    """
    folder = serving.folder
    captured, failed = _rounds(folder)
    orders = _orders(campaign, serving, captured, sorted({*captured, *failed}), threads, tensors_digest(shared))
    folder.make_folder(PLACE)
    kept = {f"{order.name}.safetensors" for order in orders}
    for name in folder.names(PLACE):  # results of other attacks, and what a kill left half-written
        if name not in kept:
            folder.remove(f"{PLACE}/{name}")
    folder.replace_file(f"{PLACE}/{SHARED}", shared)
    desk = _Desk(campaign, serving, grid, orders)
    for server_round, missing in failed.items():
        desk.keep((server_round, -1, 0), campaign.failed(server_round, missing))
    try:
        desk.begin()
        if desk.left:
            runner.run(desk.left, folder, desk)
    finally:
        campaign.reveal()
        folder.append(ROWS, desk.rows)
        if desk.problems:
            folder.append(PROBLEMS, desk.problems)
    if not desk.whole:
        serving.listener(Event("note", {"text": _BROKEN}))
    return desk.whole


def forget_orders(folder: RunFolder) -> None:
    """Drop what was kept of an attack that is done, once its rows are where they belong."""
    for name in folder.names(PLACE):
        folder.remove(f"{PLACE}/{name}")
    folder.remove_folder(PLACE)


class _Desk:
    """Has results graded as they come, and keeps the rows in their order."""

    def __init__(self, campaign: Campaign, serving: Serving, grid: Grid, orders: Sequence[Order]) -> None:
        self._campaign, self._serving, self._grid = campaign, serving, grid
        self._orders = {order.name: order for order in orders}
        self._rows: dict[tuple[int, int, int], list[Row]] = {}
        self._problems: dict[tuple[int, int], Row] = {}
        self._running: set[str] = set()
        self._done: set[str] = set()
        self.whole = True

    @property
    def left(self) -> list[Order]:
        return [order for name, order in self._orders.items() if name not in self._done]

    @property
    def rows(self) -> list[Row]:
        return [row for place in sorted(self._rows) for row in self._rows[place]]

    @property
    def problems(self) -> list[Row]:
        return [self._problems[place] for place in sorted(self._problems)]

    def keep(self, place: tuple[int, int, int], rows: list[Row]) -> None:
        self._rows.setdefault(place, []).extend(rows)

    def begin(self) -> None:
        """Grade what an earlier process left."""
        for order in self._orders.values():
            made = self._kept(order)
            if made is not None:
                self._grade(order, made)
        self._tell()

    def at(self, name: str, what: str) -> None:
        self._running.add(name)
        self._tell()

    def done(self, name: str, error: str | None) -> None:
        self._running.discard(name)
        order = self._orders[name]
        made = self._kept(order) if error is None else None
        if made is None:
            self.whole = False
        self._grade(order, made, error or "its results cannot be read")
        self._tell()

    def _kept(self, order: Order) -> Made | None:
        path = self._serving.folder.path / PLACE / f"{order.name}.safetensors"
        made = decode(path.read_bytes(), order.key) if path.is_file() else None
        return made if made is None or len(made.results) == len(order.struck) else None

    def _grade(self, order: Order, made: Made | None, error: str = "") -> None:
        spec, attack = self._campaign.attacks[order.attack]
        for number, (server_round, name) in enumerate(order.struck):
            observation = Observation.load(self._serving.folder.path / "captures" / name)
            result = made.results[number] if made is not None else failures([observation], error)[0]
            place = (server_round, order.attack, observation.client)
            self._campaign.grade(spec, attack, observation, result, self._grid, partial(self.keep, place))
        for server_round, problem in made.problems if made is not None else ():
            self._campaign.report(spec, server_round, problem, partial(self._problems.__setitem__, (server_round, order.attack)))
        self._done.add(order.name)

    def _tell(self) -> None:
        facts = {"done": len(self._done), "total": len(self._orders), "running": len(self._running)}
        self._serving.listener(Event("orders", facts))


def _rounds(folder: RunFolder) -> tuple[dict[int, list[Path]], dict[int, list[Failure]]]:
    """Return the captures of each round, by client, and the failures of each round that came to an end."""
    by_round = groupby(folder.captures(), key=lambda path: int(path.name[1:].split("-")[0]))
    captured = {server_round: list(paths) for server_round, paths in by_round}
    rows = [row for row in folder.rows("rounds.jsonl") if row["round"] > 0]
    return captured, {row["round"]: [Failure(**failure) for failure in row.get("failures", [])] for row in rows}


def _orders(
    campaign: Campaign, serving: Serving, captured: dict[int, list[Path]], rounds: Sequence[int], threads: int, tensors: str
) -> list[Order]:
    """Return what can be done apart, round by round, so that those of one round are done at about the same time."""
    content = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for paths in captured.values() for path in paths}
    given = [attack_digest(serving.scenario, spec, attack, tensors) for spec, attack in campaign.attacks]
    found: list[tuple[int, Order]] = []

    def add(number: int, name: str, steps: tuple[Step, ...]) -> None:
        captures = [[step.round, step.struck, [content[name] for name in step.captures]] for step in steps]
        key = text_digest([given[number], captures, serving.device, threads])
        order = Order(f"a{number}-{name}", key, number, steps, serving.device, threads)
        if order.struck:
            found.append((steps[0].round, order))

    for number, (spec, attack) in enumerate(campaign.attacks):
        struck = {
            server_round: groups(spec, attack, [path.name for path in captured.get(server_round, [])])
            for server_round in rounds
            if spec.strikes(server_round)
        }
        if attack.sequential:
            steps = []
            for server_round in rounds:
                chosen = [name for group in struck.get(server_round, []) for name in group]
                shown = [path.name for path in captured.get(server_round, [])] if attack.remembers else chosen
                steps.append(Step(server_round, tuple(shown), len(chosen)))
            add(number, "all", tuple(steps))
            continue
        for server_round, parts in struck.items():
            for part in parts:
                name = f"r{server_round:03d}" if attack.takes_rounds else part[0].removesuffix(".safetensors")
                add(number, name, (Step(server_round, tuple(part), len(part)),))
    return [order for _, order in sorted(found, key=lambda item: item[0])]
