"""Every random draw derives from (scenario seed, purpose, round, client, restart), never from a global generator."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedleak.errors import FedleakError
from fedleak.process import abandoned


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
        """Seed the global generators inside the block (layer initialisation, dropout, samplers) and restore them after.

        A thread that was abandoned inside the block restores nothing: others have gone on to draw from the generators. Directly
        inside :func:`generators_kept`, the end of that block restores them and not the end of this one.
        """
        thread = threading.current_thread()  # garbage may be collected, and with it a block ended, by any other
        around: _Around | None = getattr(_here, "around", None)
        if around is None or not around.free:
            with _restored(thread):
                self._seed(thread)
                yield
            return
        around.free = False  # blocks inside this one restore what it draws from
        try:
            self._seed(thread)
            yield
        finally:
            around.free = True

    def _seed(self, thread: threading.Thread) -> None:
        with abandoned.LOCK:
            if abandoned.is_abandoned(thread):
                raise FedleakError("this thread was abandoned, so it seeds nothing: others draw from the generators by now")
            _seed_torch(self.value)
            np.random.seed(self.value % 2**32)
            random.seed(self.value)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restore the global generators at the end of the block: once for all the blocks of :meth:`Seed.isolated` in it.

    To save and restore them takes longer than to seed them. What draws from them in the block, but in none of those, goes on from
    where the latest one ended.
    """
    with _restored(threading.current_thread()):
        before, _here.around = getattr(_here, "around", None), _Around()
        try:
            yield
        finally:
            _here.around = before


@dataclass
class _Around:
    """A block of :func:`generators_kept`, and whether no isolated one is open in it."""

    free: bool = True


_here = threading.local()


@contextmanager
def _restored(thread: threading.Thread) -> Iterator[None]:
    python, numpy_state, torch_state = random.getstate(), np.random.get_state(), _torch_state()
    try:
        yield
    finally:
        with abandoned.LOCK:
            if not abandoned.is_abandoned(thread):
                random.setstate(python)
                np.random.set_state(numpy_state)
                _restore_torch(torch_state)


def _seed_torch(value: int) -> None:
    """Do as ``torch.manual_seed``, which beside the generators of this machine seeds those of all that PyTorch knows.

    For each that is not there it writes down the whole stack of calls, a millisecond in all, and it imports PyTorch's compiler.
    """
    if _accelerators():
        torch.manual_seed(value)
    else:
        torch.default_generator.manual_seed(value)


def _torch_state() -> list[Tensor]:
    """Return the state of PyTorch's generator on the CPU, and of each accelerator's."""
    return [torch.get_rng_state(), *(devices.get_rng_state(number) for devices, number in _accelerators())]


def _restore_torch(state: list[Tensor]) -> None:
    # Not torch.random.fork_rng, which restores whatever has happened meanwhile.
    cpu, *others = state
    torch.set_rng_state(cpu)
    for (devices, number), of_device in zip(_accelerators(), others, strict=True):
        devices.set_rng_state(of_device, number)


@cache
def _accelerators() -> list[tuple[Any, int]]:
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        return []
    devices = torch.get_device_module(accelerator.type)
    return [(devices, number) for number in range(devices.device_count())]
