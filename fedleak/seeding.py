"""Every random draw derives from (scenario seed, purpose, round, client, restart), never from a global generator."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Seed:
    """A point in the tree of seeds: the scenario's seed and a path of purposes below it.

    The same path always gives the same numbers, whatever else drew before.

    Examples
    --------
    >>> Seed(1).derive("batch", 3, 0).value == Seed(1).derive("batch", 3, 0).value
    True
    """

    root: int
    path: tuple[str | int, ...] = ()

    def derive(self, *purpose: str | int) -> Seed:
        """Return the seed below this one for ``purpose`` (words and numbers)."""
        return Seed(self.root, self.path + purpose)

    @property
    def value(self) -> int:
        """The seed as an integer in [0, 2**63)."""
        text = repr((self.root, *self.path)).encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1

    def generator(self) -> torch.Generator:
        """Return a fresh CPU generator; draw on the CPU and move, so that devices agree."""
        return torch.Generator().manual_seed(self.value)

    def numpy(self) -> np.random.Generator:
        """Return a fresh NumPy generator."""
        return np.random.default_rng(self.value)

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Seed the global generators inside the block (layer initialisation, dropout, samplers) and restore them after."""
        python, numpy_state = random.getstate(), np.random.get_state()
        with torch.random.fork_rng():
            torch.manual_seed(self.value)
            np.random.seed(self.value % 2**32)
            random.seed(self.value)
            try:
                yield
            finally:
                random.setstate(python)
                np.random.set_state(numpy_state)
