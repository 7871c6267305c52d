"""All that each machine of a deployment needs, one folder a machine: its keys, and its own part of the data.

::

    superlink/  ca.crt server.crt server.key superexec.secret
    server/     ca.crt superexec.secret  shard/
    client-0/   ca.crt node.key          shard/    with the secret that clients draw from
    operator/   ca.crt nodes/client-0.pub ...     who admits the nodes and submits scenarios

Keys are made once: called again, with another scenario or with more clients, it adds the keys that are missing and
writes the shards anew. The authority's own key signs one certificate and is thrown away.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from fedleak.data.parts import write_parts
from fedleak.data.shards import FACTS
from fedleak.deploy.certificates import make_certificates, make_node_key
from fedleak.deploy.commands import SHARD
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import Scenario
from fedleak.scenario.secret import draw, placed

_CLIENT = re.compile(r"client-\d+")
_FRESH = f"{SHARD}.new"
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
        If a name is none or new to certificates that are there, these have expired, the data cannot be read, or a folder
        cannot be written.
    """
    clients = scenario.federation.clients
    try:
        if (out / "operator" / "ca.crt").is_file():
            _check(out, names)
        else:
            _first_keys(out, names, days)
        missing = [client for client in range(clients) if not _has_keys(out, client)]
        for client in missing:
            _client_key(out, client)
        services = [*(f"client-{client}" for client in range(clients)), "server"]
        # Made whole before the old ones go: what is wrong with the data must not cost a federation that works its own.
        for folder in (fresh := [out / service / _FRESH for service in services]):
            shutil.rmtree(folder, ignore_errors=True)
        # Of scenarios without a secret the clients keep theirs, so that a run goes on by the draws that it began with.
        secret = scenario.secret or placed([out / service / SHARD for service in services[:-1]], None) or draw()
        write_parts(scenario.data, clients, scenario.seed, fresh, secret, named=scenario.secret is not None)
        for old in _shards(out):  # those of clients that are no more, too
            shutil.rmtree(old)
        for folder in fresh:
            folder.rename(folder.with_name(SHARD))
    except OSError as error:
        raise ScenarioError(f"{error.filename}: cannot be written ({error.strerror}); choose another --out") from error
    return len(missing)


def _has_keys(out: Path, client: int) -> bool:
    own = out / f"client-{client}"
    files = (own / "node.key", own / "ca.crt", out / "operator" / "nodes" / f"client-{client}.pub")
    return all(path.is_file() for path in files)


def _client_key(out: Path, client: int) -> None:
    """Make a client's key, in place of what an interrupt left of it."""
    own, public = out / f"client-{client}", out / "operator" / "nodes" / f"client-{client}.pub"
    own.mkdir(mode=0o700, exist_ok=True)
    for path in (own / "node.key", public):
        path.unlink(missing_ok=True)
    make_node_key(own / "node.key", public)
    shutil.copy(out / "operator" / "ca.crt", own)


def _shards(out: Path) -> list[Path]:
    """Return the shards that a bundle holds, and no folder of somebody else's."""
    services = [path for path in out.iterdir() if path.name == "server" or _CLIENT.fullmatch(path.name)]
    return [service / SHARD for service in services if (service / SHARD / FACTS).is_file()]


def _first_keys(out: Path, names: Sequence[str], days: int) -> None:
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


def _check(out: Path, names: Sequence[str]) -> None:
    """Refuse certificates that have ended, or that are for other names."""
    path = out / "superlink" / "server.crt"
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    anew = f"remove {out} and make it again (with compose: docker compose down -v)"
    if (until := certificate.not_valid_after_utc) < datetime.now(UTC) + _LEFT:
        raise ScenarioError(f"{path}: expires {until:%Y-%m-%d}; {anew}")
    held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    known = {str(name.value) for name in held}
    if other := [name for name in names if name not in known]:
        raise ScenarioError(f"--name {other[0]}: {path} is there already, for {', '.join(sorted(known))}; {anew}")
