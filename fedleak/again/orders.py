"""What is done at a stretch of a run that is attacked again: which captures, by which attack; and who does it where."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedleak.attacks.base import Attack, Reconstruction
from fedleak.errors import AttackError
from fedleak.observation import Observation
from fedleak.sandbox.apart import Apart
from fedleak.sandbox.attackers import Attackers
from fedleak.sandbox.packing import Made, Unpacked, encode
from fedleak.sandbox.strike import groups
from fedleak.scenario.schema import AttackSpec


@dataclass(frozen=True)
class Step:
    """A round's captures.

    Attributes
    ----------
    round : int
        From 1.
    captures : tuple of str
        File names, by client.
    struck : int
        How many of them are attacked, the first; the others are only shown to an attack that remembers rounds.
    """

    round: int
    captures: tuple[str, ...]
    struck: int


@dataclass(frozen=True)
class Order:
    """What one process does at a stretch; travels as JSON.

    Attributes
    ----------
    name : str
        Of the order, and of the file that takes its results.
    key : str
        Digest of all that decides the results: results with another key are of another order.
    attack : int
        Which of the scenario's.
    steps : tuple of Step
        One for an attack that takes rounds in any order, all for one that must see them in theirs.
    device : str
        Where to compute.
    threads : int
        Of the computations.
    """

    name: str
    key: str
    attack: int
    steps: tuple[Step, ...]
    device: str
    threads: int

    @property
    def struck(self) -> list[tuple[int, str]]:
        """Round and file name of each capture that is attacked, in the order of the results."""
        return [(step.round, name) for step in self.steps for name in step.captures[: step.struck]]

    def to_json(self) -> str:
        """Return the order as one line of JSON; :meth:`from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Order:
        """Read what :meth:`to_json` wrote."""
        facts = json.loads(text)
        steps = tuple(Step(step["round"], tuple(step["captures"]), step["struck"]) for step in facts.pop("steps"))
        return cls(**facts, steps=steps)


def fulfil(order: Order, spec: AttackSpec, attack: Attack, attackers: Attackers, observed: Callable[[str], Observation]) -> bytes:
    """Do an order; return its results, as :func:`fedleak.sandbox.packing.decode` reads them.

    Parameters
    ----------
    order : Order
        What to do.
    spec : AttackSpec
        Of the order's attack.
    attack : Attack
        Built from ``spec``; only asked what it takes together.
    attackers : Attackers
        Run the attacks, and remember nothing of any other order.
    observed : callable
        Returns the observation in a capture of that name.
    """
    results: list[Reconstruction] = []
    problems: list[tuple[int, str]] = []
    for step in order.steps:
        observations = [observed(name) for name in step.captures]
        for group in groups(spec, attack, observations[: step.struck]):
            results += attackers.strike(order.attack, group)
        if (error := attackers.show(order.attack, observations)) is not None:
            problems.append((step.round, error))
    return encode(Made(tuple(results), tuple(problems)), order.key)


class _OnWorker:
    """A process of attacks that one of Ray's workers keeps from one task to the next, and what it was started with."""

    def __init__(self, shared: bytes, device: str, threads: int) -> None:
        unpacked = Unpacked(shared)
        self.started_with = shared, device, threads
        self.specs, self.attacks, server = unpacked.scenario.attacks, unpacked.attacks(), unpacked.scenario.server
        limits: dict[str, Any] = {"limit": server.attack_limit, "memory": server.attack_memory}
        self.apart = Apart(self.attacks, lambda: shared, device=device, threads=threads, **limits)


_kept: list[_OnWorker] = []


def _on_worker(shared: bytes, order: Order) -> _OnWorker:
    if _kept and _kept[0].started_with != (shared, order.device, order.threads):
        _kept.pop().apart.close()
    if not _kept:
        _kept.append(_OnWorker(shared, order.device, order.threads))
    return _kept[0]


def work_on_ray(line: str, shared: bytes, captures: Mapping[str, Any]) -> bytes:
    """Do an order in a task on Ray; ``captures`` are references to the files' bytes, fetched a round at a time.

    The attack runs in a process of its own there too: Ray's worker can ask the cluster who started what, with which arguments.

    Raises
    ------
    AttackError
        If that process died.
    """
    import ray

    order = Order.from_json(line)
    here = _on_worker(shared, order)
    here.apart.begin()
    spec, attack = here.specs[order.attack], here.attacks[order.attack]
    made = fulfil(order, spec, attack, here.apart, lambda name: Observation.from_bytes(ray.get(captures[name]), name))
    if here.apart.death is not None:
        raise AttackError(here.apart.death)
    return made
