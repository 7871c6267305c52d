"""An attack that tries each way by which a plugin was seen to reach what it must not, and tells what it found.

Imported by the attacks' process alone. What it looks for are words that the tests give to what it must not see; it reads them as
anybody could who guesses them, so that a word that is found is one that lay about. Not tried is what needs no Python, and what no
separate process of the same user is kept from: a search of the disk, and ``/proc`` of other processes.
"""

import contextlib
import gc
import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from fedleak.attacks.base import Attack, Reconstruction
from fedleak.sandbox.strike import attackers_seed
from fedleak.seeding import Seed, clients_seed

# Backwards, and told by their names, so that neither this file's text nor what was told before is a finding.
STRENGTH = "6421357.0"[::-1]
WORDS = {
    "folder": "nur-siht-fo-redlof"[::-1],
    "scenario": "nur-siht-fo-oiranecs"[::-1],
    "secret": "9876543210fedcba98765432107e2ce5"[::-1],
    "strength": STRENGTH,
}
ROOMS = (
    "client",
    "data",
    "runs",
    "engines",
    "server",
    "positions",
    "experiment",
    "evaluation",
    "wire",
    "again",
    "secagg",
    "apps",
)
INSIDE = tuple(f"fedleak.{room}." for room in ROOMS)


class Sneak(Attack):
    """Tries all ways; ``method`` of its result lists what it found, as JSON."""

    name = "sneak"
    spoils = True

    def reconstruct(self, observation: Any, model: Any, *, rng: Any, device: Any, budget: Any) -> Reconstruction:
        """Look around, spoil what can be spoilt, and answer with grey images."""
        found = [f"{way.__name__}: {what}" for way in WAYS for what in way()]
        found += [f"owner: {what}" for what in owner(budget)]
        found += [f"seed: {what}" for what in noise_of(observation, rng)]
        if self.spoils:
            spoil()
        images = torch.zeros(observation.batch_size, *observation.input.shape)
        return Reconstruction(images, method=json.dumps(sorted(set(found))))


class Looks(Sneak):
    """Only looks, for where it could spoil the tests themselves."""

    name = "looks"
    spoils = False


def words_in(text: str) -> list[str]:
    """Return the names of the words that a text holds."""
    return [name for name, word in WORDS.items() if word in text]


def objects() -> Iterator[str]:
    """All that Python's collector knows: what is of the rooms of clients and server, and any text that holds a word."""
    for one in gc.get_objects():
        module = str(getattr(type(one), "__module__", ""))
        if module.startswith(INSIDE):
            yield f"{module}.{type(one).__name__}"
        if type(one) in (list, tuple, set, dict):
            for item in [*one.values(), *one] if isinstance(one, dict) else list(one):
                # This module's own words are no finding, but the same text somewhere else is.
                if isinstance(item, str | bytes) and not any(item is word for word in WORDS.values()):
                    text = item if isinstance(item, str) else item.decode(errors="replace")
                    yield from (f"{word} in a {type(one).__name__} of {len(one)}" for word in words_in(text))


def modules() -> Iterator[str]:
    """Rooms that are imported."""
    yield from (name for name in sys.modules if f"{name}.".startswith(INSIDE))


def frames() -> Iterator[str]:
    """The callers' local names, in this and all other threads."""
    for top in sys._current_frames().values():
        frame: Any = top
        while frame is not None:
            if not frame.f_code.co_filename.endswith("wall_sneak.py"):
                names = ("folder", "data", "grid", "directory", "serving", "scenario", "recorder", "truth")
                yield from (f"{frame.f_code.co_name}.{name}" for name in names if name in frame.f_locals)
                for name, value in frame.f_locals.items():
                    if isinstance(value, str | bytes | list | tuple):
                        yield from (f"{word} in {frame.f_code.co_name}.{name}" for word in words_in(repr(value)[:100_000]))
            frame = frame.f_back


def threads() -> Iterator[str]:
    """What the threads are called."""
    yield from (word for thread in threading.enumerate() for word in words_in(thread.name))


def environment() -> Iterator[str]:
    """The environment, as it is and as it was when the process began."""
    texts = [json.dumps(dict(os.environ))]
    with contextlib.suppress(OSError), open("/proc/self/environ", "rb") as file:  # noqa: PTH123
        texts.append(file.read().decode(errors="replace"))
    yield from (word for text in texts for word in words_in(text))
    yield from (name for name in os.environ if name.startswith("FEDLEAK"))


def arguments() -> Iterator[str]:
    """The arguments, as Python has them and as the system has."""
    texts = [*sys.argv, *sys.orig_argv]
    with contextlib.suppress(OSError), open("/proc/self/cmdline", "rb") as file:  # noqa: PTH123
        texts.append(file.read().decode(errors="replace"))
    yield from (word for text in texts for word in words_in(text))


def places() -> Iterator[str]:
    """The working folder, and where open files lie; what can be read from them."""
    yield from words_in(os.getcwd())  # noqa: PTH109
    if os.getcwd() != os.sep:  # noqa: PTH109
        yield os.getcwd()  # noqa: PTH109
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(OSError):
            place = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
            yield from words_in(place)
            if place.startswith(os.sep) and not place.startswith(("/dev/", "/proc/", "/sys/")):
                yield f"open {place}"


def standard_input() -> Iterator[str]:
    """What is still to be read there."""
    with contextlib.suppress(OSError, ValueError):
        yield from words_in(sys.stdin.read())
        yield from ["standard input"] if os.read(0, 1) else []


def owner(budget: Any) -> Iterator[str]:
    """Whoever is told how far an attack is: the object behind the function, and what the function closes over."""
    tell = getattr(budget, "on_progress", None)
    behind = [getattr(tell, "__self__", None), *(cell.cell_contents for cell in getattr(tell, "__closure__", None) or ())]
    for one in behind:
        for name, value in vars(one).items() if hasattr(one, "__dict__") else ():
            module = str(getattr(type(value), "__module__", ""))
            if module.startswith(INSIDE) or words_in(repr(value)):
                yield f"{type(one).__name__}.{name}"


def noise_of(observation: Any, rng: Any) -> Iterator[str]:
    """The clients' noise, drawn again from all that can be guessed of their seed."""
    seeds = [seed for seed in range(1000) if attackers_seed(seed).root == rng.root]  # a small number is found in a millisecond
    roots = [Seed(seed) for seed in [*seeds, rng.root, *range(10)]]
    roots += [clients_seed(guess, seed) for seed in seeds for guess in ("0" * 32, f"{seed:032x}", f"{rng.root:032x}"[-32:])]
    for root in roots:
        for derived in (root, root.derive("client")):
            at = derived.derive("defense", "gaussian-noise", 0, observation.round, observation.client)
            for name, value in observation.update.items():
                drawn = at.derive(name)
                for noise in (drawn.normal(value.shape), torch.randn(value.shape, generator=drawn.generator())):
                    pair = torch.stack([noise.flatten(), value.flatten().float()])
                    if value.numel() > 100 and float(torch.corrcoef(pair)[0, 1].abs()) > 0.5:
                        yield f"noise of {name}"


def spoil() -> None:
    """Switch off the clients' defense and seed all generators, as far as they are this process's."""
    from fedleak.defenses.chain import DefenseChain
    from fedleak.defenses.gaussian_noise import GaussianNoise

    GaussianNoise.on_update = lambda self, update, situation: update  # type: ignore[method-assign]
    DefenseChain.__bool__ = lambda self: False  # type: ignore[method-assign]
    Seed.normal = lambda self, shape, dtype=torch.float32: torch.zeros(shape, dtype=dtype)  # type: ignore[method-assign]
    torch.manual_seed(0)
    np.random.seed(0)
    torch.set_default_dtype(torch.float64)
    sys.path.clear()
    os.environ.clear()


WAYS = (objects, modules, frames, threads, environment, arguments, places, standard_input)
