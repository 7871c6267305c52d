"""Intervals of a mean over seeds and examples, by a bootstrap that draws whole seeds first and examples within them.

Formula: the 2.5 % and 97.5 % quantiles of 2,000 means, each over k - 1 of the k seeds and n - 1 of each seed's n examples
Source: Davison and Hinkley 1997, section 3.8 (clustered bootstrap); Rao and Wu 1988 (draw one fewer than there are)

Examples of one seed share a network, a partition and the draws of a defense, so they are no independent observations of the
defense. Drawing one fewer than there are, at both levels, keeps the variance of few clusters from being underrated; with two
seeds the interval spans what each of them alone would give. With one seed it is over examples alone, and says nothing of
other networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedleak.seeding import Seed

LEVEL = 0.95
"""Share of intervals that are meant to hold the true mean."""

_RESAMPLES = 2_000


@dataclass(frozen=True)
class Interval:
    """A mean and where the true one may lie.

    Attributes
    ----------
    mean : float
        Over all examples.
    low, high : float
        Ends of the interval; infinite where one value is all there is.
    seeds, examples : int
        How many it rests on.
    """

    mean: float
    low: float
    high: float
    seeds: int
    examples: int

    @property
    def half(self) -> float:
        """The larger distance from the mean to an end."""
        return max(self.mean - self.low, self.high - self.mean)


def interval(by_seed: Sequence[Sequence[float]]) -> Interval | None:
    """Return the mean of all values with its interval; ``None`` if there is no value.

    Parameters
    ----------
    by_seed : sequence of sequences of float
        For each seed the values of its examples, all finite; a seed without a value is left out.
    """
    groups = [np.asarray(values, dtype=float) for values in by_seed if len(values)]
    total = sum(map(len, groups))
    if not total:
        return None
    mean = float(np.concatenate(groups).mean())
    if total == 1:
        return Interval(mean, -math.inf, math.inf, 1, 1)
    rng = Seed(0).derive("bootstrap").numpy()
    sums, counts = np.zeros(_RESAMPLES), np.zeros(_RESAMPLES)
    for _ in range(max(1, len(groups) - 1)):
        drawn = rng.integers(len(groups), size=_RESAMPLES)
        for index, values in enumerate(groups):
            here = drawn == index
            size = max(1, len(values) - 1)
            sums[here] += values[rng.integers(len(values), size=(int(here.sum()), size))].sum(axis=1)
            counts[here] += size
    low, high = np.quantile(sums / counts, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    # The mean may lie outside where seeds differ in how many images they have.
    return Interval(mean, min(mean, float(low)), max(mean, float(high)), len(groups), total)


def none_of(examples: int) -> float:
    """Return the largest share in [0, 1] that seeing none among ``examples`` does not exclude, at :data:`LEVEL`."""
    return 1.0 - (1.0 - LEVEL) ** (1.0 / examples) if examples else 1.0
