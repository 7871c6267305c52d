"""Whether a SuperLink's certificate can be trusted, and in plain words why a connection to it failed."""

from __future__ import annotations

import contextlib
import socket
import ssl
from datetime import UTC, datetime
from pathlib import Path

import httpx
from cryptography import x509

from fedleak.errors import ScenarioError
from fedleak.scenario.schema import SuperLink

ABSENT = "is it running there? `fedleak deploy up` starts one"
"""What is asked where nothing tells why a SuperLink does not answer."""
_PATIENCE = 5.0  # seconds that a SuperLink is given to say what it speaks
_NEW = "make new ones with `fedleak deploy certs` in another folder, and give each machine its own"


def check_certificate(path: Path, where: str) -> bytes:
    """Return a certificate's file, if it holds some that are valid today.

    Raises
    ------
    ScenarioError
        If it cannot be read, is none, has expired or is not valid yet.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ScenarioError(
            f"{where}: {path}: cannot be read ({error.strerror}); expected the ca.crt that `fedleak deploy certs` made"
        ) from error
    try:
        certificates = x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise ScenarioError(f"{where}: {path}: no certificate in PEM format ({error})") from error
    for certificate in certificates:
        if said := untimely(certificate):
            raise ScenarioError(f"{where}: {path}: the certificate {said}")
    return content


def untimely(certificate: x509.Certificate) -> str:
    """Return in words how a certificate is out of its time, and what to do; empty if it is not."""
    now, begin, end = datetime.now(UTC), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        return f"expired on {end:%Y-%m-%d}; {_NEW}"
    if now < begin:
        return f"is valid from {begin:%Y-%m-%d %H:%M} UTC on, and this machine's clock says {now:%Y-%m-%d %H:%M}; set the clock"
    return ""


def cause(error: httpx.RequestError, superlink: SuperLink) -> tuple[str, bool]:
    """Return why a request failed and what to do, in one line; and whether the SuperLink cannot have taken it."""
    text = str(error) or type(error).__name__
    connecting = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
    if "CERTIFICATE" in text.upper():
        return _distrust(text, superlink), True
    spoken = _speaks_tls(superlink.address)
    if superlink.insecure and spoken:
        return (
            "it speaks TLS, and was asked in plain HTTP; leave out insecure, and give the deployment's ca.crt as "
            "root_certificates (--root-certificates)"
        ), True
    if not superlink.insecure and spoken is False:
        return "it speaks plain HTTP, and was asked over TLS; start it with its certificate, or for tests give insecure", True
    return f"{text}; {ABSENT}", connecting


def _distrust(text: str, superlink: SuperLink) -> str:
    """Return why a certificate was not accepted."""
    shown = _certificate_of(superlink.address)
    if ("expired" in text or "not yet valid" in text) and shown is not None and (said := untimely(shown)):
        return f"its certificate {said}"
    if "expired" in text:
        return f"its certificate, or that of its authority, has expired; {_NEW}"
    if "mismatch" in text.lower():
        return (
            f"its certificate is for another name than {superlink.address.rpartition(':')[0]} ({text}); use one that was given "
            "by --name when it was made"
        )
    trusted = superlink.root_certificates or "a known authority"
    return (
        f"its certificate is not signed by {trusted} ({text}); give the deployment's ca.crt as "
        "federation.superlink.root_certificates (--root-certificates)"
    )


def _certificate_of(address: str) -> x509.Certificate | None:
    """Return the certificate that a SuperLink shows, whoever signed it; ``None`` if it shows none."""
    with contextlib.suppress(OSError, ValueError), _shaken(address) as secured:
        shown = secured.getpeercert(binary_form=True)
        return None if shown is None else x509.load_der_x509_certificate(shown)
    return None


def _speaks_tls(address: str) -> bool | None:
    """Whether whatever listens there takes a handshake of TLS; ``None`` if nothing listens."""
    try:
        with _shaken(address):
            return True
    except ssl.SSLError:
        return False
    except (OSError, ValueError):
        return None


def _shaken(address: str) -> ssl.SSLSocket:
    host, _, port = address.rpartition(":")
    # To look at what is there, not to trust it: nothing is sent.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE))
