"""A client of a SuperLink's Control API: what `flwr run`, `flwr stop` and `flwr supernode register` call."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import Status
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    StreamLogsRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedleak.engines.trust import cause, check_certificate
from fedleak.errors import FedleakError, ScenarioError
from fedleak.scenario.schema import SuperLink

_PATIENCE = 120.0  # seconds that the network may fail while a run is followed
_PAUSE = 2.0  # seconds between two attempts

# The app that is submitted holds no code: server and clients have fedleak installed.
PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "fedleak-run"
version = "0.1.0"
dependencies = []
[tool.flwr.app]
publisher = "fedleak"
[tool.flwr.app.components]
serverapp = "fedleak.apps.serverapp:app"
clientapp = "fedleak.apps.clientapp:app"
[tool.flwr.app.config]
scenario = ""
out = ""
resume = ""
device = "auto"
threads = 1
allow-code = false
"""


class Control:
    """Talks to one SuperLink.

    Parameters
    ----------
    superlink : SuperLink
        Where, and how to trust it.

    Raises
    ------
    ScenarioError
        If the certificate cannot be read, or is out of its time.
    """

    def __init__(self, superlink: SuperLink) -> None:
        self.superlink = superlink
        self._following = False
        certificate = None
        if superlink.root_certificates is not None and not superlink.insecure:
            certificate = check_certificate(superlink.root_certificates.expanduser(), "federation.superlink.root_certificates")
        try:
            self._client = ControlHttpClient.from_server_address(
                superlink.address,
                superlink.insecure,
                certificate,
                interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
            )
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ScenarioError(
                f"federation.superlink.root_certificates: {superlink.root_certificates}: no certificate in PEM format ({error})"
            ) from error

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def start(self, config: Mapping[str, str | int | bool]) -> int:
        """Submit fedleak's app with this run configuration; return the run's id.

        Raises
        ------
        ScenarioError
            If the SuperLink cannot be reached, or refused it: nothing has started.
        """
        content, _ = build_fab_from_files({"pyproject.toml": PYPROJECT.encode(), "README.md": b"A run of fedleak.\n"})
        fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
        with self._explained("submit the run"):
            reply = self._client.StartRun(
                StartRunRequest(fab=fab_to_proto(fab), override_config=user_config_to_proto(dict(config)))
            )
        if not reply.HasField("run_id"):
            raise FedleakError(f"the SuperLink at {self.superlink.address} did not start the run; its own log says why")
        return int(reply.run_id)

    def logs(self, run_id: int) -> Iterator[str]:
        """Yield the lines of the ServerApp's log as they come, until the run has ended; a network may fail for two minutes."""
        rest, self._following = "", True
        for piece in self._pieces(run_id):
            *lines, rest = (rest + piece).split("\n")
            yield from lines
        if rest:
            yield rest

    def _pieces(self, run_id: int) -> Iterator[str]:
        after, broken_since = 0.0, None
        while True:
            try:
                with self._explained("read the log"):
                    for piece in self._client.StreamLogs(StreamLogsRequest(run_id=run_id, after_timestamp=after)):
                        after, broken_since = piece.latest_timestamp, None
                        yield piece.log_output
                return
            except FedleakError as error:
                broken_since = broken_since or time.monotonic()
                unreachable = isinstance(error.__cause__, httpx.RequestError)
                if not unreachable or time.monotonic() - broken_since > _PATIENCE:
                    raise
                time.sleep(_PAUSE)

    def finished(self, run_id: int) -> bool:
        """Say whether the run has ended, in whatever way."""
        with self._explained("look at the run"):
            reply = self._client.ListRuns(ListRunsRequest(run_id=run_id))
        return run_id not in reply.run_dict or reply.run_dict[run_id].status.status == Status.FINISHED

    def stop(self, run_id: int) -> None:
        """Stop a run; one that has ended already stays as it is."""
        with self._explained("stop the run"):
            self._client.StopRun(StopRunRequest(run_id=run_id))

    def register(self, public_key: Path) -> None:
        """Admit the SuperNode that holds the private half of this key (OpenSSH format, a NIST curve); once is enough."""
        key = load_ssh_public_key(public_key.read_bytes())
        try:
            with self._explained(f"register {public_key.name}"):
                self._client.RegisterNode(RegisterNodeRequest(public_key=public_key_to_bytes(key)))  # type: ignore[arg-type]
        except FedleakError as error:
            if "already" not in str(error):
                raise

    def admits(self, private_key: Path) -> bool:
        """Say whether the SuperNode that holds this key (OpenSSH format) was admitted."""
        public = load_ssh_private_key(private_key.read_bytes(), None).public_key()
        with self._explained("list the nodes"):
            reply = self._client.ListNodes(ListNodesRequest())
        admitted = [bytes(node.public_key) for node in reply.nodes_info if node.status != "unregistered"]
        return public_key_to_bytes(public) in admitted  # type: ignore[arg-type]

    def online(self) -> int:
        """Return how many SuperNodes are connected."""
        with self._explained("list the nodes"):
            reply = self._client.ListNodes(ListNodesRequest())
        return sum(node.status == "online" for node in reply.nodes_info)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn what Flower's client raises into one line."""
        where = f"cannot {what} at the SuperLink {self.superlink.address}"
        try:
            yield
        except httpx.HTTPStatusError as error:
            known = FlowerError.from_json(error.response.text)
            reason = f"{known}" if known else f"HTTP status {error.response.status_code}"
            raise self._kind(True)(f"{where}: {reason}") from error
        except httpx.RequestError as error:
            # What failed after the connection stood may have been taken.
            reason, untaken = cause(error, self.superlink)
            raise self._kind(untaken)(f"{where}: {reason}") from error

    def _kind(self, untaken: bool) -> type[FedleakError]:
        """Return the error of a request that was not taken: nothing has started, unless a run is being followed."""
        return ScenarioError if untaken and not self._following else FedleakError
