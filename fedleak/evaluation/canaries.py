"""The empirical epsilon: what an observer gains from a direction that a client may have sent, beside the accountant's bound.

Formula: t = <c, what is observed> for canaries that sent c and for directions that nobody sent; d = (mean difference) / (pooled
standard deviation); epsilon is that at which N(0, 1) and N(d, 1) are (epsilon, delta)-indistinguishable:
delta = Phi(d / 2 - epsilon / d) - e^epsilon Phi(-d / 2 - epsilon / d)
Source: canaries in the same run, Andrew et al. 2023, arXiv 2302.03098; the last formula: Balle and Wang 2018, arXiv 1805.06530;
the interval of d: Hedges and Olkin 1985

Canaries (``[evaluation.canaries]``) are the last clients: they train on nothing, and send a random direction of the largest norm
that the defense lets pass, through the same defenses as everybody. Nothing is trained again. Three observers are told of:

    server       sees each canary's own update, in all rounds: against it an accountant's bound of a client-side defense holds.
                 Not there under secure aggregation
    iterates     sees the global model after each round; directions are weighed by how little the others move along them
    final model  sees how the model differs from the first: the observer of the paper

A bound of a defense holds for all three, so that an epsilon above it with its whole interval says that the noise or its
accounting is wrong; one below is what canaries could show, and no guarantee. Without noise the figure is far above any that
protects. Canaries change the model that is trained: read a run's other figures with them in mind. Defenses that work before the
update is made, on batches or on the gradients of steps, are not met by canaries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedleak.seeding import Seed

Row = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
OBSERVERS = {
    "server": "the server, of each update",
    "iterates": "who sees every round's model",
    "final": "who sees the final model",
}
_Z = 1.959963984540054  # of a normal's 97.5 %
_Values = NDArray[np.float64]


def direction(seed: Seed, shapes: Shapes) -> dict[str, Tensor]:
    """Return a random unit vector by parameter name, in float32; the same on every machine.

    Parameters
    ----------
    seed : Seed
        Of the canary.
    shapes : mapping of str to tuple of int
        Of the parameters, without buffers.
    """
    drawn = {name: torch.randn(shape, generator=seed.derive(name).generator()) for name, shape in shapes.items()}
    norm = math.sqrt(math.fsum(float(value.double().square().sum()) for value in drawn.values()))
    return {name: value / norm for name, value in drawn.items()}


def canary_seed(seed: int, client: int) -> Seed:
    """Return the seed of the direction that a client sends."""
    return Seed(seed).derive("canary", client)


def control_seed(seed: int, number: int) -> Seed:
    """Return the seed of a direction that nobody sends."""
    return Seed(seed).derive("canary-control", number)


def epsilon_of(effect: float, delta: float) -> float:
    """Return the epsilon at which two normals, ``effect`` standard deviations apart, are indistinguishable at ``delta``.

    Parameters
    ----------
    effect : float
        At most 0 gives 0.
    delta : float
        In (0, 1).
    """
    from scipy.optimize import brentq  # a tenth of a second, in every process that reads a summary
    from scipy.special import log_ndtr

    if effect <= 0:
        return 0.0

    def excess(epsilon: float) -> float:
        first, second = log_ndtr(effect / 2 - epsilon / effect), epsilon + log_ndtr(-effect / 2 - epsilon / effect)
        # In logarithms: both terms leave the range of floats where the effect is large.
        return float(first + math.log1p(-math.exp(min(0.0, second - first))) - math.log(delta)) if second < first else -math.inf

    if excess(0.0) <= 0:
        return 0.0
    high = effect**2 / 2 + effect * math.sqrt(2 * math.log(1 / delta))
    return float(brentq(lambda epsilon: max(excess(epsilon), -1e9), 0.0, high, xtol=1e-9))


def estimate(canaries: Sequence[float], controls: Sequence[float], delta: float) -> Row | None:
    """Return the empirical epsilon of one observer; ``None`` with fewer than two canaries or controls, or none that varies.

    Parameters
    ----------
    canaries, controls : sequence of float
        Inner products of what is observed with directions that were sent, and with some that were not.
    delta : float
        At which it is stated.

    Returns
    -------
    dict
        ``epsilon``, ``low`` and ``high``, the ends of its interval at 95 %; ``effect``, the distance in standard deviations;
        ``canaries`` and ``controls``, how many.
    """
    sent, not_sent = np.asarray(canaries, dtype=np.float64), np.asarray(controls, dtype=np.float64)
    first, second = len(sent), len(not_sent)
    if min(first, second) < 2:
        return None
    degrees = first + second - 2
    pooled = math.sqrt(float(((first - 1) * sent.var(ddof=1) + (second - 1) * not_sent.var(ddof=1)) / degrees))
    if not pooled > 0:
        return None
    effect = float(sent.mean() - not_sent.mean()) / pooled
    half = _Z * math.sqrt((first + second) / (first * second) + effect**2 / (2 * degrees))
    low, middle, high = (epsilon_of(value, delta) for value in (effect - half, effect, effect + half))
    return {"epsilon": middle, "low": low, "high": high, "effect": effect, "canaries": first, "controls": second}


def summarise(rows: Iterable[Row], delta: float) -> Row | None:
    """Return the empirical epsilons from the lines of ``canaries.jsonl``; ``None`` if there are none.

    Returns
    -------
    dict
        ``rounds`` and ``delta``; ``observers``, what :func:`estimate` returns by observer, those that saw enough.
    """
    found = list(rows)
    if not found:
        return None
    observers = {"server": _server(found, delta), "iterates": _models(found, delta, weighed=True)}
    observers["final"] = _models(found, delta, weighed=False)
    return {
        "rounds": len(found),
        "delta": delta,
        "observers": {name: figures for name, figures in observers.items() if figures is not None},
    }


def _server(rows: Sequence[Row], delta: float) -> Row | None:
    """Take each canary's updates together: its own direction against the other canaries', which they do not hold."""
    took: dict[str, list[Row]] = {}
    for row in rows:
        for client, products in row["updates"].items():
            took.setdefault(client, []).append(products)
    own: list[float] = []
    other: list[float] = []
    for client, updates in took.items():
        scale = math.sqrt(len(updates))
        for name in updates[0]:
            (own if name == client else other).append(math.fsum(update[name] for update in updates) / scale)
    return estimate(own, other, delta)


def _models(rows: Sequence[Row], delta: float, *, weighed: bool) -> Row | None:
    moved = [row for row in rows if row["model"] is not None]
    if not moved:
        return None
    canaries: _Values = np.array([row["model"]["canaries"] for row in moved])
    controls: _Values = np.array([row["model"]["controls"] for row in moved])
    if weighed:
        spread = controls.var(axis=1, ddof=1)
        # A round in which the model did not move tells nothing.
        weights = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
        canaries, controls = canaries * weights[:, None], controls * weights[:, None]
    return estimate(canaries.sum(axis=0).tolist(), controls.sum(axis=0).tolist(), delta)
