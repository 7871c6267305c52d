"""Certificates and keys of a deployment: one folder for each service, so that each can be given its own and nothing else.

::

    ca.crt  ca.key                                       the authority; its key signs, and no service needs it
    superlink/  ca.crt server.crt server.key superexec.secret
    server/     ca.crt superexec.secret                  what runs the ServerApp and the attack
    client-0/   ca.crt node.key                          one a client
    nodes/      client-0.pub ...                         public; a SuperLink admits the nodes whose keys it was given
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedleak.errors import ScenarioError

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9A-Fa-f:]+")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def make_certificates(folder: Path, clients: int, names: Sequence[str] = (), days: int = 365) -> None:
    """Make an authority, the SuperLink's certificate, a key for each client's node, and the secret between the servers.

    Parameters
    ----------
    folder : Path
        To make; readable by its owner only, like every private key in it.
    clients : int
        Number of node keys.
    names : sequence of str
        Host names and IP addresses that clients reach the SuperLink by, beside those of this machine itself.
    days : int
        How long the certificates are valid.

    Raises
    ------
    ScenarioError
        If a name is none, or the folder exists or cannot be written.
    """
    for name in names:
        if not _NAME.fullmatch(name):
            raise ScenarioError(f"--name {name}: expected a host name in letters, digits, dots and hyphens, or an IP address")
    try:
        folder.mkdir(parents=True, mode=0o700)
    except FileExistsError as error:
        raise ScenarioError(
            f"{folder}: exists already; its keys stay as they are; choose another folder, or remove it"
        ) from error
    except OSError as error:
        raise ScenarioError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from error
    until = datetime.now(UTC) + timedelta(days=days)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _authority(authority_key, until)
    server_key = ec.generate_private_key(ec.SECP256R1())
    server = _server(server_key, authority, authority_key, [*LOOPBACK, *names], until)
    secret = secrets.token_hex(32).encode()
    root = authority.public_bytes(Encoding.PEM)
    _write(folder / "ca.key", _pem(authority_key))
    for service in ("superlink", "server", *(f"client-{client}" for client in range(clients))):
        (folder / service).mkdir(mode=0o700)
        _write(folder / service / "ca.crt", root, private=False)
    _write(folder / "ca.crt", root, private=False)
    _write(folder / "superlink" / "server.crt", server.public_bytes(Encoding.PEM), private=False)
    _write(folder / "superlink" / "server.key", _pem(server_key))
    for service in ("superlink", "server"):
        _write(folder / service / "superexec.secret", secret)
    (folder / "nodes").mkdir(mode=0o700)
    for client in range(clients):
        make_node_key(folder / f"client-{client}" / "node.key", folder / "nodes" / f"client-{client}.pub")


def make_node_key(private: Path, public: Path) -> None:
    """Write a new ECDSA key pair (P-384, OpenSSH format), by which a SuperLink knows a SuperNode."""
    key = ec.generate_private_key(ec.SECP384R1())
    _write(private, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    _write(public, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n", private=False)


def check_pair(private: Path, public: Path) -> None:
    """Refuse a node's private key that is not the one whose public half a SuperLink is to admit.

    Raises
    ------
    ScenarioError
        Also if one of them cannot be read.
    """
    try:
        own = load_ssh_private_key(private.read_bytes(), None).public_key()
        admitted = load_ssh_public_key(public.read_bytes())
    except (OSError, ValueError) as error:
        raise ScenarioError(
            f"{private}: no key of a node, or {public} is none ({error}); make new ones with `fedleak deploy certs`"
        ) from error
    form = Encoding.OpenSSH, PublicFormat.OpenSSH
    if own.public_bytes(*form) != admitted.public_bytes(*form):
        raise ScenarioError(
            f"{private}: an unknown key: {public} is another's, so the SuperLink would turn the node away; put the two that were "
            "made together there, or make new ones"
        )


def node_keys(folder: Path) -> list[Path]:
    """Return the public keys of a deployment's nodes, in the order of the clients."""
    return sorted((folder / "nodes").glob("client-*.pub"), key=lambda path: int(path.stem.rpartition("-")[2]))


def _authority(key: ec.EllipticCurvePrivateKey, until: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedleak deployment")])
    usage = _usage(key_cert_sign=True, crl_sign=True)
    return (
        _builder(name, name, key.public_key(), until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


def _server(
    key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    names: Sequence[str],
    until: datetime,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SuperLink")])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _builder(name, authority.subject, key.public_key(), until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in dict.fromkeys(names)]), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, until: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(minutes=5))  # clocks differ
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes, *, private: bool = True) -> None:
    """Write a new file; a private one is never readable by others, not even for a moment."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644), "wb") as file:
        file.write(content)
