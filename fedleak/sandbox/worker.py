"""The process that attacks: ``python -m fedleak.sandbox.worker``, which :mod:`fedleak.sandbox.apart` starts.

It is given observations and the network as bytes on its standard input, and returns reconstructions and progress. Its
environment, arguments, working folder and open files name no run folder, no scenario, no seed and no key. It ends when its input
does, in the middle of an attack too: then whoever asked is gone.
"""

from __future__ import annotations

import os
import queue
import resource
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedleak.process.frames import Ended, Facts, read_frame, write_frame

if TYPE_CHECKING:
    from fedleak.observation import Observation

Frame = tuple[Facts, list[bytes]]
_PAUSE = 0.1  # seconds between two tellings of how far an attack is
_MEBIBYTE = 2**20


def main() -> None:
    """Serve requests until the input ends."""
    requests, answers = os.dup(0), os.dup(1)
    # What an attack or a library prints must not get between the answers, nor read a request.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdin = open(0, closefd=False)  # noqa: PTH123, SIM115 (a descriptor, for as long as the process lives)
    waiting: queue.Queue[Frame] = queue.Queue()
    threading.Thread(target=_read, args=(requests, waiting), daemon=True).start()
    served = _Served(answers)
    while True:
        served.take(*waiting.get())


def leave_compiler_out() -> None:
    """Let an optimiser of torch's be made without the import of torch's compiler, which takes above a CPU second.

    Its constructor tells the compiler to leave one of its methods alone, and imports it for that. Nothing is compiled in this
    process. Where a version of torch has it otherwise, or the compiler is there already, nothing is done.
    """
    from torch.optim import Optimizer

    method = getattr(Optimizer.add_param_group, "__wrapped__", None)
    if method is not None and "torch._dynamo" not in sys.modules and not hasattr(method, "__dynamo_disable"):
        method.__dynamo_disable = method


def _read(requests: int, waiting: queue.Queue[Frame]) -> None:
    try:
        while True:
            waiting.put(read_frame(requests))
    except Ended:
        os._exit(0)


class _Served:
    """What the process holds between two requests: the attacks and the network."""

    def __init__(self, answers: int) -> None:
        self._answers = answers
        self._told = 0.0

    def take(self, facts: Facts, blobs: list[bytes]) -> None:
        """Do what a request asks for, and answer it."""
        # Imported here, so that a process that dies of an import dies in a request, which has an answer.
        from fedleak.errors import FedleakError

        asked: Callable[[Facts, list[bytes]], Frame] = getattr(self, f"_do_{facts['do']}")
        try:
            answer, content = asked(facts, blobs)
        except FedleakError as error:
            answer, content = {"refused": str(error)}, []
        write_frame(self._answers, {"kind": "done", **answer}, content)

    def _do_begin(self, facts: Facts, blobs: list[bytes]) -> Frame:
        """Take what all attacks share."""
        import torch

        from fedleak.sandbox.packing import Unpacked

        torch.set_num_threads(facts["threads"])
        torch.empty(0, device=facts["device"])  # in use from here on, so that its generators are seeded with the others
        leave_compiler_out()
        self._unpacked = Unpacked(blobs[0])
        self._device, self._threads = facts["device"], facts["threads"]
        self._do_forget(facts, blobs)
        if facts["memory"] is not None:
            _bound(facts["memory"] * _MEBIBYTE)
        return {}, []

    def _do_forget(self, facts: Facts, blobs: list[bytes]) -> Frame:
        """Build the attacks anew."""
        # Not watched: whoever asks ends this process where an attack takes too long.
        self._attackers = self._unpacked.attackers(self._device, self._threads, watched=False)
        return {}, []

    def _do_derivatives(self, facts: Facts, blobs: list[bytes]) -> Frame:
        """Say what of the network cannot be differentiated twice where attacks compute."""
        from fedleak.models.second import no_second_derivative

        lacking = no_second_derivative(self._unpacked.model, self._unpacked.input, self._device)
        return {} if lacking is None else {"layer": lacking.layer, "reason": lacking.reason}, []

    def _do_strike(self, facts: Facts, blobs: list[bytes]) -> Frame:
        from fedleak.attacks.base import Progress
        from fedleak.sandbox.packing import Made, encode

        def tell(progress: Progress) -> None:
            now = time.monotonic()
            if now - self._told >= _PAUSE:
                self._told = now
                write_frame(self._answers, {"kind": "progress", **vars(progress)})

        results = self._attackers.strike(facts["attack"], self._seen(blobs), tell)
        return {}, [encode(Made(tuple(results)), "")]

    def _do_show(self, facts: Facts, blobs: list[bytes]) -> Frame:
        return {"error": self._attackers.show(facts["attack"], self._seen(blobs))}, []

    def _seen(self, blobs: list[bytes]) -> list[Observation]:
        from fedleak.observation import Observation

        return [self._unpacked.complete(Observation.from_bytes(blob)) for blob in blobs]


def _bound(more: int) -> None:
    """Let this process take so many bytes of memory beyond what it holds now."""
    with open("/proc/self/statm") as file:  # noqa: PTH123 (no file of anybody's)
        held = int(file.read().split()[5]) * resource.getpagesize()  # data and stack
    resource.setrlimit(resource.RLIMIT_DATA, (held + more, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()
