"""A whole deployment on this machine: SuperLink, the process that runs the ServerApp, and a SuperNode for each client."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from fedleak.deploy.certificates import check_pair, node_keys
from fedleak.deploy.commands import POLL, client_command, program, search_path, server_command, superlink_command
from fedleak.deploy.guard import Guard
from fedleak.engines.superlink import Control
from fedleak.errors import FedleakError, ScenarioError
from fedleak.scenario.schema import SuperLink

_HOST = "127.0.0.1"
_PATIENCE = 120.0  # seconds that a service is given to start
_GRACE = 10.0  # seconds that it is given to end


@dataclass(frozen=True)
class Layout:
    """What to start.

    Attributes
    ----------
    keys : Path
        The folder that `fedleak deploy certs` made; its node keys say how many clients there are. Its ``secrets`` are the
        clients': what they draw from (:mod:`fedleak.scenario.secret`).
    runs : Path
        Takes the run folders.
    shards : Path, optional
        The folder that `fedleak deploy shards` made; without it, every service opens the scenario's own data.
    port : int, optional
        Of the SuperLink; by default a free one.
    insecure : bool
        Plain HTTP, and nodes without keys.
    clients : int, optional
        With ``insecure``, how many; otherwise at most as many as there are keys.
    """

    keys: Path
    runs: Path
    shards: Path | None = None
    port: int | None = None
    insecure: bool = False
    clients: int | None = None


@dataclass
class Service:
    """One process and all that it starts; in a session of its own, so that it ends as a whole."""

    name: str
    command: Sequence[str]
    environment: dict[str, str]
    log: Path
    guard: Guard
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start it; should this process die, it is ended."""
        if self.process is not None:
            self.guard.forget(self.process.pid)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.guard.watch(self.process.pid)

    @property
    def ended(self) -> bool:
        """Whether it was started and runs no more."""
        return self.process is not None and self.process.poll() is not None

    def signal(self, number: int) -> None:
        """Send a signal to the process and all that it started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def stop(self, grace: float = _GRACE) -> None:
        """End it, gently first."""
        if self.process is None:
            return
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace)
        self.signal(signal.SIGKILL)
        self.process.wait()


class Services:
    """Start a deployment on this machine, and stop it at the end of the ``with`` block.

    Parameters
    ----------
    layout : Layout
        What to start.

    Raises
    ------
    ScenarioError
        If the port is taken, or there are no keys, or not so many.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        keys = layout.keys
        found = len(node_keys(keys))
        self.clients = layout.clients or found
        if not layout.insecure and not (keys / "ca.crt").is_file():
            raise ScenarioError(f"{keys}: no ca.crt in it; make the keys with: fedleak deploy certs {keys} --clients N")
        if not layout.insecure and found < self.clients:
            raise ScenarioError(f"{keys}: keys for {found} clients, not for {self.clients}; make a new folder of keys")
        if not layout.insecure:
            for client, public in enumerate(node_keys(keys)[: self.clients]):
                check_pair(keys / f"client-{client}" / "node.key", public)
        if not self.clients:
            raise ScenarioError("how many clients? give --clients")
        port = free_port() if layout.port is None else _taken(layout.port)
        self.superlink = SuperLink(
            address=f"{_HOST}:{port}",
            insecure=layout.insecure,
            root_certificates=None if layout.insecure else (keys / "ca.crt").resolve(),
        )
        self._guard = Guard()
        self._home = tempfile.TemporaryDirectory(prefix="fedleak-deployment-")
        self.logs = Path(self._home.name) / "logs"
        self.logs.mkdir()
        self.secrets = Path(self._home.name) if layout.insecure else keys
        self.services = {
            "superlink": self._service("superlink", superlink_command(self._folder("superlink"), _HOST, port)),
            "server": self._server(),
            **{f"client-{client}": self.node(client) for client in range(self.clients)},
        }

    def __enter__(self) -> Self:
        """Start all, register the nodes' keys, and wait until every node is connected."""
        try:
            self.services["superlink"].start()
            self._wait("the SuperLink is healthy", self._healthy)
            if not self.layout.insecure:
                control = Control(self.superlink)
                for key in node_keys(self.layout.keys)[: self.clients]:
                    control.register(key)
                control.close()
            for name, service in self.services.items():
                if name != "superlink":
                    service.start()
            self._wait(f"{self.clients} nodes are connected", lambda: self.online() >= self.clients)
        except BaseException:  # an interrupt too must leave no service behind; it is raised again
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def online(self) -> int:
        """Return how many nodes are connected."""
        control = Control(self.superlink)
        try:
            return control.online()
        finally:
            control.close()

    def watch(self, seconds: float = 5.0) -> None:
        """Start again whatever ends, until the SuperLink does.

        Raises
        ------
        FedleakError
            Then; with the end of its log.
        """
        while True:
            self.revive()
            time.sleep(seconds)

    def revive(self) -> list[str]:
        """Start those services again that have ended, and return their names.

        A SuperLink takes a node that was killed for connected until its heartbeat is overdue, and turns a second one
        with the same key away, which then ends: it takes up to a minute and several starts to come back.

        Raises
        ------
        FedleakError
            If the SuperLink has ended: the runs that it knew are lost with it.
        """
        ended = [name for name, service in self.services.items() if service.ended]
        if "superlink" in ended:
            self._check()
        for name in ended:
            self.services[name].signal(signal.SIGKILL)  # what it may have left running
            self.services[name].start()
        return ended

    def stop(self) -> None:
        """Stop all services, and remove what they kept on disk."""
        for service in reversed(self.services.values()):
            service.signal(signal.SIGTERM)
        for service in reversed(self.services.values()):
            service.stop()
        self._guard.dismiss()
        self._home.cleanup()

    def node(self, client: int, key: Path | None = None, name: str | None = None) -> Service:
        """Return the SuperNode of a client, with its own key or with another; not started."""
        settings: dict[str, int | str] = {"partition-id": client, "num-partitions": self.clients}
        if self.layout.shards is not None:
            settings["data-dir"] = str((self.layout.shards / f"client-{client}").resolve())
        settings["secrets-dir"] = str(self.secrets.resolve())
        folder = self._folder(f"client-{client}")
        command = client_command(folder, self.superlink.address, settings, host=_HOST, port=free_port(), key=key)
        return self._service(name or f"client-{client}", command)

    def _server(self) -> Service:
        extra = {"FEDLEAK_RUNS": str(self.layout.runs.resolve())}
        if self.layout.shards is not None:
            extra["FEDLEAK_SERVER_DATA"] = str((self.layout.shards / "server").resolve())
        return self._service("server", server_command(self._folder("server"), self.superlink.address), extra)

    def _folder(self, service: str) -> Path | None:
        return None if self.layout.insecure else self.layout.keys / service

    def _service(self, name: str, command: list[str], extra: dict[str, str] | None = None) -> Service:
        home = Path(self._home.name) / name
        home.mkdir(exist_ok=True)
        environment = POLL | os.environ | {"PATH": search_path(), "FLWR_HOME": str(home), **(extra or {})}
        return Service(name, [program(command[0]), *command[1:]], environment, self.logs / f"{name}.log", self._guard)

    def _healthy(self) -> bool:
        scheme, authority = ("http", None) if self.layout.insecure else ("https", str(self.superlink.root_certificates))
        verify = ssl.create_default_context(cafile=authority)
        try:
            return httpx.get(f"{scheme}://{self.superlink.address}/health", verify=verify, timeout=2.0).is_success
        except httpx.HTTPError:
            return False

    def _wait(self, what: str, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not done():
            self._check()
            if time.monotonic() > deadline:
                raise FedleakError(f"waited {_PATIENCE:.0f} s in vain until {what}; {self._last_words()}")
            time.sleep(0.3)

    def _check(self) -> None:
        ended = [name for name, service in self.services.items() if service.ended]
        if ended:
            raise FedleakError(f"{ended[0]} ended by itself; {self._last_words(ended[0])}")

    def _last_words(self, name: str = "superlink") -> str:
        log = self.services[name].log
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        return f"the end of its log: {' / '.join(line.strip() for line in lines[-5:])}"


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _taken(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise ScenarioError(f"--port {port}: cannot be used ({error.strerror}); choose another") from error
    return port
