"""The command lines of Flower's services: each reads one folder, and runs wherever that folder is.

A service's folder, as `fedleak deploy certs` and `fedleak deploy bundle` make it::

    superlink/  ca.crt server.crt server.key superexec.secret
    server/     ca.crt superexec.secret  shard/
    client-0/   ca.crt node.key          shard/
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from fedleak.engines.trust import check_certificate
from fedleak.errors import ScenarioError

SHARD = "shard"  # a service's own part of the data, in its folder
# Seconds between two looks for work; Flower's own second adds to each message.
POLL = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3"}


def superlink_command(folder: Path | None, host: str, port: int) -> list[str]:
    """Return what starts a SuperLink; without a folder, one that speaks plain HTTP and takes any node.

    Raises
    ------
    ScenarioError
        If a file is missing from the folder.
    """
    command = ["flower-superlink", "--host", host, "--port", str(port), "--isolation", "process"]
    if folder is None:
        return [*command, "--insecure"]
    command += ["--ssl-ca-certfile", _file(folder, "ca.crt"), "--ssl-certfile", _file(folder, "server.crt")]
    command += ["--ssl-keyfile", _file(folder, "server.key"), "--enable-supernode-auth"]
    return [*command, "--superexec-auth-secret-file", _file(folder, "superexec.secret")]


def server_command(folder: Path | None, address: str) -> list[str]:
    """Return what starts the process that runs ServerApps, and with them the attacks.

    Raises
    ------
    ScenarioError
        If a file is missing from the folder.
    """
    command = ["flower-superexec", "--runtime-api-address", address]
    if folder is None:
        return [*command, "--insecure"]
    command += ["--root-certificates", _file(folder, "ca.crt")]
    return [*command, "--superexec-auth-secret-file", _file(folder, "superexec.secret")]


def client_command(
    folder: Path | None, address: str, settings: Mapping[str, int | str], *, host: str, port: int, key: Path | None = None
) -> list[str]:
    """Return what starts a SuperNode.

    Parameters
    ----------
    folder : Path or None
        The client's own; without it, plain HTTP and no key.
    address : str
        HOST:PORT of the SuperLink.
    settings : mapping
        The node's configuration.
    host, port : str, int
        Where the node listens for its own ClientApp.
    key : Path, optional
        In place of the folder's; an empty path for none at all.

    Raises
    ------
    ScenarioError
        If a file is missing from the folder.
    """
    given = " ".join(f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}" for name, value in settings.items())
    command = ["flower-supernode", "--superlink", address, "--host", host, "--port", str(port), "--node-config", given]
    if folder is None:
        return [*command, "--insecure"]
    command += ["--root-certificates", _file(folder, "ca.crt")]
    private = _file(folder, "node.key") if key is None else str(key)
    return command + (["--auth-supernode-private-key", private] if key != Path() else [])


def client_settings(folder: Path) -> dict[str, int | str]:
    """Return the configuration of the node whose folder holds its shard.

    Raises
    ------
    ScenarioError
        If it holds none, or somebody else's.
    """
    from fedleak.data.shards import shard_facts

    facts = shard_facts(folder / SHARD)
    if facts["client"] is None:
        raise ScenarioError(f"{folder}: the server's folder, not a client's; start it with: fedleak deploy server {folder}")
    return {
        "partition-id": int(facts["client"]),
        "num-partitions": len(facts["sizes"]),
        "data-dir": str((folder / SHARD).resolve()),
    }


def program(name: str) -> str:
    """Return the path of one of Flower's programs.

    Raises
    ------
    ScenarioError
        If it is not installed.
    """
    found = shutil.which(name, path=search_path())
    if found is None:
        raise ScenarioError(f"{name} is not installed beside {sys.executable}; pip install 'flwr[simulation]>=1.41,<1.43'")
    return found


def search_path() -> str:
    """Return the PATH by which services find Python's own programs first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def become(command: list[str], extra: Mapping[str, str] | None = None) -> None:
    """Run a command in place of this process, so that signals reach it."""
    os.execve(program(command[0]), command, POLL | os.environ | {"PATH": search_path(), **(extra or {})})


def _file(folder: Path, name: str) -> str:
    path = folder / name
    if not path.is_file():
        raise ScenarioError(
            f"{folder}: no {name} in it; expected the service's own folder, as `fedleak deploy certs` or `bundle` makes it"
        )
    if path.suffix == ".crt":
        check_certificate(path, str(folder))
    return str(path)
