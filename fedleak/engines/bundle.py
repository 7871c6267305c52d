"""All that each machine of a deployment needs, one folder a machine: its keys, and its own part of the data.

::

    superlink/  ca.crt server.crt server.key superexec.secret
    server/     ca.crt superexec.secret  shard/
    client-0/   ca.crt node.key          shard/
    operator/   ca.crt nodes/client-0.pub ...     who admits the nodes and submits scenarios

Keys are made once: called again, with another scenario or with more clients, it adds the keys that are missing and
writes the shards anew. The authority's own key signs one certificate and is thrown away.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from fedleak.data.shards import write_parts
from fedleak.engines.certificates import make_certificates, make_node_key
from fedleak.engines.commands import SHARD
from fedleak.errors import ScenarioError
from fedleak.scenario import Scenario

_LEFT = timedelta(days=1)  # a certificate that ends sooner is called expired


def make_bundle(scenario: Scenario, out: Path, names: Sequence[str] = (), days: int = 365) -> int:
    """Make the folders of a deployment, or bring those that are there up to date.

    Parameters
    ----------
    scenario : Scenario
        Its data are split; ``federation.clients`` says how many clients there are.
    out : Path
        Folder of the folders.
    names : sequence of str
        Host names and IP addresses that clients reach the SuperLink by.
    days : int
        How long new certificates are valid.

    Returns
    -------
    int
        The number of new node keys.

    Raises
    ------
    ScenarioError
        If a name is none, the certificates have expired, the data cannot be read, or a folder cannot be written.
    """
    clients = scenario.federation.clients
    operator = out / "operator"
    try:
        if (operator / "ca.crt").is_file():
            _check(out)
        else:
            _first_keys(out, clients, names, days)
        missing = [client for client in range(clients) if not (out / f"client-{client}" / "node.key").is_file()]
        for client in missing:
            folder, public = out / f"client-{client}", operator / "nodes" / f"client-{client}.pub"
            folder.mkdir(mode=0o700, exist_ok=True)
            public.unlink(missing_ok=True)
            make_node_key(folder / "node.key", public)
            shutil.copy(operator / "ca.crt", folder)
        folders = [*(out / f"client-{client}" / SHARD for client in range(clients)), out / "server" / SHARD]
        for folder in out.glob(f"*/{SHARD}"):  # those of clients that are no more, too
            shutil.rmtree(folder)
    except OSError as error:
        raise ScenarioError(f"{error.filename}: cannot be written ({error.strerror}); choose another --out") from error
    write_parts(scenario.data, clients, scenario.seed, folders)
    return len(missing)


def _first_keys(out: Path, clients: int, names: Sequence[str], days: int) -> None:
    """Make certificates, and put each file where it is needed; of clients' keys none yet."""
    with tempfile.TemporaryDirectory() as place:
        made = Path(place) / "made"
        make_certificates(made, 0, names, days)
        for service in ("superlink", "server", "operator"):
            (out / service).mkdir(parents=True, mode=0o700, exist_ok=True)
            for file in (made / service).glob("*"):
                shutil.copy(file, out / service)
        (out / "operator" / "nodes").mkdir(mode=0o700, exist_ok=True)
        shutil.copy(made / "ca.crt", out / "operator")  # last: what says that all is there


def _check(out: Path) -> None:
    """Refuse certificates that have ended."""
    path = out / "superlink" / "server.crt"
    until = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    if until < datetime.now(UTC) + _LEFT:
        raise ScenarioError(f"{path}: expires {until:%Y-%m-%d}; remove {out} and make it again, and start its services again")
