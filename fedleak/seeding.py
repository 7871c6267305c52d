"""Every random draw derives from (root, purpose, round, client, restart), never from a global generator.

The root is the scenario's seed for what everybody may know, the attacker's own for attacks, and for what clients draw
:func:`clients_seed`, of a secret that no server and no attack is told.
"""

from __future__ import annotations

import hashlib
import math
import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedleak.errors import FedleakError
from fedleak.process import abandoned

_HEADER, _WORDS = 24, 624  # of the state of PyTorch's generator on the CPU, in bytes, and of a Mersenne Twister


@dataclass(frozen=True)
class Seed:
    """A point in the tree of seeds: the scenario's seed and a path of purposes below it.

    The same path always gives the same numbers, whatever else drew before.

    Examples
    --------
    >>> Seed(1).derive("batch", 3, 0).value == Seed(1).derive("batch", 3, 0).value
    True

    Attributes
    ----------
    root : int
        The scenario's seed, or another.
    path : tuple of str and int
        What it is for.
    wide : bool
        Whether generators are filled from all of the root. PyTorch's and NumPy's use 32 bits of a number that they are seeded
        with, which who sees a part of what was drawn can try out in minutes.
    """

    root: int
    path: tuple[str | int, ...] = ()
    wide: bool = False

    def derive(self, *purpose: str | int) -> Seed:
        """Return the seed below this one for ``purpose`` (words and numbers)."""
        return Seed(self.root, self.path + purpose, self.wide)

    @property
    def top(self) -> Seed:
        """The seed at the root."""
        return Seed(self.root, (), self.wide)

    def drawn(self, size: int) -> bytes:
        """Return so many bytes: who does not know the root can tell none of them from the others."""
        return hashlib.shake_256(repr((self.root, *self.path)).encode()).digest(size)

    @property
    def value(self) -> int:
        """The seed as an integer in [0, 2**63)."""
        text = repr((self.root, *self.path)).encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1

    def generator(self) -> torch.Generator:
        """Return a fresh CPU generator; draw on the CPU and move, so that devices agree."""
        return _filled(torch.Generator(), self) if self.wide else torch.Generator().manual_seed(self.value)

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return draws from N(0, 1) on the CPU.

        Of a wide seed by a hash: a generator's whole state follows from some hundreds of its draws, which a server sees wherever
        an update is known to be zero but for its noise; what is added elsewhere would follow too.
        """
        if self.wide:
            return (torch.erfinv(2 * self._uniform(shape) - 1) * math.sqrt(2)).to(dtype)
        return torch.randn(tuple(shape), generator=self.generator(), dtype=dtype)

    def laplace(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return draws from the Laplace distribution of scale 1, like :meth:`normal`."""
        # The difference of two unit exponentials needs no logarithm of a possible zero.
        if self.wide:
            up, down = self._uniform((2, *shape)).log().neg().unbind()
        else:
            generator = self.generator()
            up, down = (torch.empty(tuple(shape), dtype=dtype).exponential_(generator=generator) for _ in range(2))
        drawn: Tensor = up - down
        return drawn.to(dtype)

    def _uniform(self, shape: Sequence[int]) -> Tensor:
        """Return numbers of 52 bits in (0, 1), float64."""
        words = np.frombuffer(self.derive("stream").drawn(8 * math.prod(shape)), dtype="<u8")
        return torch.from_numpy(((words >> 12) + 0.5) / 2**52).view(tuple(shape))

    def numpy(self) -> np.random.Generator:
        """Return a fresh NumPy generator."""
        return np.random.default_rng(int.from_bytes(self.drawn(32), "big") if self.wide else self.value)

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
            if self.wide:
                _filled(torch.default_generator, self)
                np.random.seed(_words(self))
                random.seed(self.drawn(32))
            else:
                np.random.seed(self.value % 2**32)
                random.seed(self.value)


def clients_seed(secret: str | None, seed: int) -> Seed:
    """Return the root of all that clients draw: who knows the scenario's seed alone can derive nothing of it.

    Parameters
    ----------
    secret : str or None
        The scenario's.
    seed : int
        The scenario's.

    Raises
    ------
    FedleakError
        If there is no secret here, or its fingerprint in its place, as a server has it.
    """
    if secret is None or ":" in secret:
        raise FedleakError(
            "clients draw by a secret, and this scenario holds none, or its fingerprint; give it one: 32 hex digits"
        )
    return Seed(int.from_bytes(hashlib.sha256(f"clients/{secret}/{seed}".encode()).digest(), "big"), wide=True)


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


def _filled(generator: torch.Generator, seed: Seed) -> torch.Generator:
    """Fill all the 624 words of a generator's Mersenne Twister."""
    state = generator.manual_seed(0).get_state()
    # The number that it was seeded with, how many words are left, whether it was seeded, the next word; then 8 bytes a word.
    state[_HEADER : _HEADER + 8 * _WORDS] = torch.from_numpy(_words(seed).astype(np.uint64).view(np.uint8))
    return generator.set_state(state)


def _words(seed: Seed) -> np.ndarray[Any, np.dtype[np.uint32]]:
    return np.frombuffer(seed.drawn(4 * _WORDS), dtype="<u4").astype(np.uint32)


def _seed_torch(value: int) -> None:
    """Do as ``torch.manual_seed``, which beside the generators of this machine seeds those of all that PyTorch knows.

    For each that is not there it writes down the whole stack of calls, a millisecond in all, and it imports PyTorch's compiler.
    """
    if _in_use():
        torch.manual_seed(value)
    else:
        torch.default_generator.manual_seed(value)


def _torch_state() -> list[Tensor]:
    """Return the state of PyTorch's generator on the CPU, and of each accelerator's."""
    return [torch.get_rng_state(), *(devices.get_rng_state(number) for devices, number in _in_use())]


def _restore_torch(state: list[Tensor]) -> None:
    # Not torch.random.fork_rng, which restores whatever has happened meanwhile.
    cpu, *others = state
    torch.set_rng_state(cpu)
    # One that came into use since then had no state to be put back.
    for (devices, number), of_device in zip(_in_use(), others, strict=False):
        devices.set_rng_state(of_device, number)


def _in_use() -> list[tuple[Any, int]]:
    """Return the accelerators that this process computes on: to ask another for its state would take memory of it."""
    return [(devices, number) for devices, number in _accelerators() if getattr(devices, "is_initialized", lambda: True)()]


@cache
def _accelerators() -> list[tuple[Any, int]]:
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        return []
    devices = torch.get_device_module(accelerator.type)
    return [(devices, number) for number in range(devices.device_count())]
