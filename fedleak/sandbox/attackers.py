"""Who runs a campaign's attacks, in this process; :mod:`fedleak.sandbox.apart` has those that run in one of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import nn

from fedleak.attacks.base import Attack, Progress, Reconstruction
from fedleak.observation import Observation
from fedleak.sandbox.limit import wall_limit
from fedleak.sandbox.strike import show, strike
from fedleak.seeding import Seed


class Attackers(Protocol):
    """Runs attacks, by their place in a list; what they remember of a round lives as long as they do.

    Attributes
    ----------
    forgot : bool
        Whether what the attacks had been shown is lost, so that it must be shown again before the next of them; whoever shows it
        again says so by setting this to false.
    """

    forgot: bool

    def strike(
        self, number: int, observations: Sequence[Observation], progress: Callable[[Progress], None] | None = None
    ) -> list[Reconstruction]:
        """Attack a group of one round's observations; whatever goes wrong is a result that says so, one for each of them."""

    def show(self, number: int, observations: Sequence[Observation]) -> str | None:
        """Show a round that is over to an attack that keeps what it saw; return what went wrong, if anything did."""

    def close(self) -> None:
        """End what was started for them."""


class Here:
    """In this process: for a debugger, and inside a process that is there for nothing else.

    An attack could reach from here whatever the process holds: the clients' data where the clients run in it too, the scenario,
    the run folder. Where that matters, use :class:`fedleak.sandbox.apart.Apart`.

    Parameters
    ----------
    attacks : sequence of Attack
        All of them.
    model : Module
        Of the architecture that the clients train.
    seed : Seed
        Of the attacker.
    device : str
        Where to compute.
    threads : int
        Of the computations.
    limit : float, optional
        Seconds by the clock, for each update; see :func:`fedleak.sandbox.limit.wall_limit`.
    watched : bool
        Whether to end an attack that takes longer; without, somebody else does.
    """

    def __init__(
        self,
        attacks: Sequence[Attack],
        model: nn.Module,
        *,
        seed: Seed,
        device: str = "cpu",
        threads: int = 1,
        limit: float | None = None,
        watched: bool = True,
    ) -> None:
        self.forgot = False
        self._attacks, self._model = attacks, model
        self._seed, self._device, self._threads = seed, device, threads
        self._limit, self._watched = limit, watched

    def strike(
        self, number: int, observations: Sequence[Observation], progress: Callable[[Progress], None] | None = None
    ) -> list[Reconstruction]:
        """Attack a group of one round's observations."""
        attack = self._attacks[number]
        return strike(
            attack,
            observations,
            self._model,
            seed=self._seed,
            device=self._device,
            threads=self._threads,
            seconds=self._seconds(attack, len(observations)),
            progress=progress,
        )

    def show(self, number: int, observations: Sequence[Observation]) -> str | None:
        """Show a round that is over to an attack that keeps what it saw."""
        attack = self._attacks[number]
        return show(attack, observations, self._threads, self._seconds(attack, len(observations)))

    def close(self) -> None:
        """Do nothing: nothing was started."""

    def _seconds(self, attack: Attack, updates: int) -> float | None:
        return wall_limit(attack.config.budget_seconds, self._limit, updates) if self._watched else None
