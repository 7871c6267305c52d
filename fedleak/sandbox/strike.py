"""One strike: an attack on a group of observations, kept from reaching anything else, and its failure made a result.

The attack side of a server calls it in its own process, and workers elsewhere do: with the same arguments the results are the
same bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from torch import nn

from fedleak.attacks.base import Attack, Progress, Reconstruction
from fedleak.observation import Observation
from fedleak.sandbox.limit import limited
from fedleak.sandbox.quarantine import quarantine, sound
from fedleak.scenario.schema import AttackSpec
from fedleak.seeding import Seed

Update = TypeVar("Update")


def groups(spec: AttackSpec, attack: Attack, updates: Sequence[Update]) -> list[list[Update]]:
    """Return which of a round's updates are attacked, and which together.

    Parameters
    ----------
    updates : sequence
        Observations, or whatever stands for them, by client.
    """
    chosen = updates if spec.clients == "all" else updates[: spec.clients]
    # An attack that does not batch clients is given them one by one, so that each result is kept at once.
    if not attack.takes_rounds:
        return [[one] for one in chosen]
    return [list(chosen)] if chosen else []


def strike(
    attack: Attack,
    observations: Sequence[Observation],
    model: nn.Module,
    *,
    seed: Seed,
    device: str,
    threads: int,
    seconds: float | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[Reconstruction]:
    """Attack a group of observations; whatever goes wrong is a result that says so, one for each of them.

    Parameters
    ----------
    attack : Attack
        Which.
    observations : sequence of Observation
        Of one round.
    model : Module
        Of the architecture that the clients train.
    seed : Seed
        Of the attacker; see :func:`attackers_seed`.
    device : str
        Where to compute.
    threads : int
        Of the computations.
    seconds : float, optional
        By the clock, after which it is taken to hang; see :func:`fedleak.sandbox.limit.wall_limit`.
    progress : callable, optional
        Told how far it is.
    """
    try:
        # The attack may write into whatever it is given; the next attack and the server's own test must not see that.
        given, own = copy.deepcopy((list(observations), model))
        call = partial(attack, given, own, seed=seed, device=device, progress=progress)
        # Around the thread, not in it: what an attack that hangs in native code comes back to must be as it was.
        with quarantine(threads), seed.isolated():
            results = limited(call, seconds)
            return [sound(result, seen) for result, seen in zip(results, observations, strict=True)]
    except KeyboardInterrupt:
        raise
    # The one broad except of the server: a plugin by anybody may raise anything, and the federation must go on.
    except BaseException as error:  # noqa: BLE001
        return failures(observations, f"{type(error).__name__}: {error}")


def show(attack: Attack, observations: Sequence[Observation], threads: int, seconds: float | None = None) -> str | None:
    """Show a round that is over to an attack that keeps what it saw; return what went wrong, if anything did."""
    if attack.remembers:
        try:
            given = copy.deepcopy(list(observations))
            with quarantine(threads):
                limited(partial(attack.remember, given), seconds)
        except KeyboardInterrupt:
            raise
        # As in a strike: a plugin by anybody may raise anything.
        except BaseException as error:  # noqa: BLE001
            return f"{type(error).__name__}: {error}"
    return None


def failures(observations: Sequence[Observation], message: str) -> list[Reconstruction]:
    """Return a result for each observation that says why there are no images."""
    return [
        Reconstruction(None, round=observation.round, client=observation.client, stop_reason="failed", error=message)
        for observation in observations
    ]


def attackers_seed(seed: int) -> Seed:
    """Return the root of the attacker's draws: from the scenario's, an attack could derive the clients' noise and batches."""
    return Seed(Seed(seed).derive("attack").value)
