"""Attacks in a process of their own, which holds what an attacker may know and nothing else.

The process is started once, given the public network and, for each strike, observations as bytes; it gives back reconstructions
and how far it is. What holds, on every engine and where a finished run is attacked again, here, in jobs or on Ray
(tests/integration/test_isolation.py tries it):

- Its memory, environment, arguments, working folder, open files and what it can read from them hold nothing of the clients, the
  scenario, its seed, its secret or the run folder: no object to be walked to, no frame, no thread.
- What it patches or seeds is its own, and reaches neither the clients nor the next round's training.
- The seed that it is given leads to the scenario's by trying; the clients' draws derive from the secret, which no server has.
- The true images of a round are written after its last attack.
- One that takes too long, in Python or in native code, or that dies, is a row; the next has a new process.

What does not hold: it runs as the same user on the same machine. It can read what this user can: run folders, of this run's
earlier rounds too, ``client.secret`` in them, the data (its import path names the folder that the run was started in); ``/proc``
of the process that started it, whose arguments and environment may name all of these; and, where the system lets a debugger
attach, its memory. It can end processes and use the network. Attacks of one run share the process, and could spoil each other's
results. Against a plugin that sets out for that there is the system's own separation, by users, containers or machines, and
nothing here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from fedleak.attacks.base import Attack, Progress, Reconstruction
from fedleak.errors import AttackError, FedleakError
from fedleak.models.second import NoSecondDerivative
from fedleak.observation import Observation
from fedleak.process.frames import Ended, Facts, Garbled, Late, read_frame, write_frame
from fedleak.sandbox.limit import wall_limit
from fedleak.sandbox.packing import decode
from fedleak.sandbox.quarantine import sound
from fedleak.sandbox.strike import failures

_KEPT = ("PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV", "SSL_CERT_FILE")
_KEPT_KINDS = ("LC_", "CUDA", "NVIDIA", "ROCR", "HIP", "TORCH", "PYTORCH", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "MALLOC_", "HF_")
_THREADS = "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"
_LAST = 300  # characters of a dead process's last words that an error repeats
_LINES = 50  # of what it printed are kept


class Apart:
    """Runs attacks in a process of their own.

    Parameters
    ----------
    attacks : sequence of Attack
        As :func:`fedleak.sandbox.packing.pack` was given them; those in the process are built from what it wrote.
    shared : callable
        Returns what :func:`fedleak.sandbox.packing.pack` writes; asked when a process is started.
    device : str
        Where to compute.
    threads : int
        Of the computations.
    limit : float, optional
        Seconds by the clock, for each update; see :func:`fedleak.sandbox.limit.wall_limit`.
    memory : int, optional
        MiB that an attack may take beside the network.

    Attributes
    ----------
    death : str or None
        How a process died since :meth:`begin`, if one did; one that was ended because it took too long is not meant.
    """

    def __init__(
        self,
        attacks: Sequence[Attack],
        shared: Callable[[], bytes],
        *,
        device: str = "cpu",
        threads: int = 1,
        limit: float | None = None,
        memory: int | None = None,
    ) -> None:
        self.forgot = False
        self.death: str | None = None
        self._attacks, self._shared = attacks, shared
        self._begin: Facts = {"do": "begin", "device": device, "threads": threads, "memory": memory}
        self._threads, self._limit = threads, limit
        self._process: _Process | None = None
        self._lock = threading.Lock()  # close() may come from another thread

    def strike(
        self, number: int, observations: Sequence[Observation], progress: Callable[[Progress], None] | None = None
    ) -> list[Reconstruction]:
        """Attack a group of one round's observations; whatever goes wrong is a result that says so, one for each of them."""
        seconds = self._seconds(number, len(observations))
        try:
            _, blobs = self._ask({"do": "strike", "attack": number}, observations, seconds, progress)
            made = decode(blobs[0], "") if blobs else None
            if made is None or len(made.results) != len(observations):
                raise AttackError("the attack's process gave back something else than its results")
            return [sound(result, seen) for result, seen in zip(made.results, observations, strict=True)]
        except FedleakError as error:
            return failures(observations, f"{type(error).__name__}: {error}")

    def show(self, number: int, observations: Sequence[Observation]) -> str | None:
        """Show a round that is over to an attack that keeps what it saw; return what went wrong, if anything did."""
        if not self._attacks[number].remembers:
            return None
        try:
            facts, _ = self._ask({"do": "show", "attack": number}, observations, self._seconds(number, len(observations)))
        except FedleakError as error:
            return f"{type(error).__name__}: {error}"
        return None if facts.get("error") is None else str(facts["error"])

    def no_second_derivative(self) -> NoSecondDerivative | None:
        """Return what :func:`fedleak.models.second.no_second_derivative` says in the process, of the device where it computes."""
        facts, _ = self._ask({"do": "derivatives"}, [], None)
        return NoSecondDerivative(str(facts["layer"]), str(facts["reason"])) if "layer" in facts else None

    def begin(self) -> None:
        """Start the process, or have the one that is there forget all that its attacks were shown.

        Raises
        ------
        FedleakError
            If it cannot be started, or refuses: it says why.
        """
        self.death = None
        if self._process is not None and not self._process.ended:
            self._answer(self._process, {"do": "forget"}, [], None, None)
            return
        shared = self._shared()
        with self._lock:
            self._process = _Process(self._threads)
        try:
            self._answer(self._process, self._begin, [shared], None, None)
        except FedleakError:  # it was told nothing that it could work with
            self.close()
            raise

    def close(self) -> None:
        """End the process."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.end()

    def _ask(
        self,
        request: Facts,
        observations: Sequence[Observation],
        seconds: float | None,
        progress: Callable[[Progress], None] | None = None,
    ) -> tuple[Facts, list[bytes]]:
        if self._process is None:
            self.begin()
        assert self._process is not None
        return self._answer(self._process, request, [seen.to_bytes() for seen in observations], seconds, progress)

    def _answer(
        self,
        process: _Process,
        request: Facts,
        blobs: list[bytes],
        seconds: float | None,
        progress: Callable[[Progress], None] | None,
    ) -> tuple[Facts, list[bytes]]:
        """Return the answer to a request; where there is none, end the process, so that the next request has a new one."""
        try:
            facts, content = process.ask(request, blobs, seconds, progress)
        except BaseException as error:  # an interrupt must not leave it at work either
            self.close()
            self.forgot = any(attack.remembers for attack in self._attacks)
            self.death = str(error) if isinstance(error, _Died) else self.death
            raise
        if "refused" in facts:
            raise FedleakError(facts["refused"])
        return facts, content

    def _seconds(self, number: int, updates: int) -> float | None:
        return wall_limit(self._attacks[number].config.budget_seconds, self._limit, updates)


class _Died(AttackError):
    """The process is gone, and nobody here ended it."""


class _Process:
    """The process, and the pipes to it."""

    def __init__(self, threads: int) -> None:
        environment = {key: value for key, value in os.environ.items() if key in _KEPT or key.startswith(_KEPT_KINDS)}
        # It must import what this process can, such as the user's own module of attacks.
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fedleak.sandbox.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=os.sep,
            env=environment | dict.fromkeys(_THREADS, str(threads)) | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for whoever asked, who then ends it
        )
        os.set_blocking(self._stdin.fileno(), False)
        self._said: deque[str] = deque(maxlen=_LINES)
        self._listener = threading.Thread(target=self._listen, name="attack's output", daemon=True)
        self._listener.start()

    @property
    def ended(self) -> bool:
        """Whether the process is no more."""
        return self._process.poll() is not None

    def ask(
        self, request: Facts, blobs: Sequence[bytes], seconds: float | None, progress: Callable[[Progress], None] | None
    ) -> tuple[Facts, list[bytes]]:
        """Send a request, and wait for the answer.

        Raises
        ------
        AttackError
            If it takes longer than ``seconds``, or the process dies.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            write_frame(self._stdin.fileno(), request, blobs, deadline)
            while True:
                facts, content = read_frame(self._stdout.fileno(), deadline)
                if facts.pop("kind", None) == "done":
                    return facts, content
                if progress is not None:
                    progress(Progress(**facts))
        except Late as late:
            raise AttackError(f"the attack hangs: it had not ended after {seconds:g} s, and its process was ended") from late
        except Ended as ended:
            raise _Died(self._last_words()) from ended
        except (Garbled, TypeError) as garbled:
            raise AttackError("the attack's process wrote something else than answers, and was ended") from garbled

    def end(self) -> None:
        """Kill the process, and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        self._listener.join()
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _listen(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                self._said.append(line.decode(errors="replace").strip())

    def _last_words(self) -> str:
        code = self._process.wait()
        self._listener.join()
        how = f"killed by {signal.Signals(-code).name}; out of memory?" if code < 0 else f"exit code {code}"
        last = next((line for line in reversed(self._said) if line), "")
        return f"the attack's process died ({how})" + (f": {last[-_LAST:]}" if last else "")
