"""Why a SuperLink is not reached is told in one line that names the cause, and ends with 2, as nothing has started."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedleak.cli.machines import _refuse_stranger
from fedleak.deploy import certificates
from fedleak.deploy.certificates import check_pair, make_certificates, make_node_key
from fedleak.deploy.commands import superlink_command
from fedleak.deploy.services import Layout, Services
from fedleak.engines.superlink import Control
from fedleak.engines.trust import check_certificate
from fedleak.errors import ScenarioError
from fedleak.scenario.schema import SuperLink


def made_on(monkeypatch: pytest.MonkeyPatch, folder: Path, day: datetime, days: int = 30) -> Path:
    """Return a folder of certificates that were made on another day."""

    class Then(datetime):
        @classmethod
        def now(cls, tz=None):  # type: ignore[override]
            return day

    with monkeypatch.context() as other:
        other.setattr(certificates, "datetime", Then)
        make_certificates(folder, 1, days=days)
    return folder


@pytest.fixture
def valid(tmp_path: Path) -> Path:
    make_certificates(tmp_path / "valid", 2)
    return tmp_path / "valid"


@pytest.fixture
def expired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return made_on(monkeypatch, tmp_path / "expired", datetime(2020, 1, 1, tzinfo=UTC))


@contextmanager
def listening(keys: Path | None = None) -> Iterator[str]:
    """Serve HTTP on a port of this machine, over TLS with ``keys``; give its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    if keys is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(keys / "superlink" / "server.crt", keys / "superlink" / "server.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def refusal(link: SuperLink) -> str:
    control = Control(link)
    with pytest.raises(ScenarioError) as refused:
        control.start({"scenario": "{}"})
    control.close()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_certificate_that_has_expired_is_told_with_its_day(valid: Path, expired: Path, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"root_certificates: .*ca.crt: the certificate expired on 2020-01-31; make new ones"):
        Control(SuperLink(address="127.0.0.1:1", root_certificates=expired / "ca.crt"))
    with pytest.raises(ScenarioError, match="superlink/ca.crt: the certificate expired on 2020-01-31"):
        superlink_command(expired / "superlink", "127.0.0.1", 8000)
    with pytest.raises(ScenarioError, match="expired on 2020-01-31"):
        Services(Layout(expired, tmp_path / "runs"))
    with listening(expired) as address:  # the SuperLink's own: whoever asks may trust another authority
        assert "its certificate" in (told := refusal(SuperLink(address=address, root_certificates=valid / "ca.crt")))
        assert "expired on 2020-01-31" in told or "not signed by" in told


def test_one_of_tomorrow_asks_for_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = made_on(monkeypatch, tmp_path / "early", datetime.now(UTC) + timedelta(days=2))
    with pytest.raises(ScenarioError, match="is valid from .* set the clock"):
        check_certificate(keys / "ca.crt", "here")


def test_an_expired_server_certificate_under_an_authority_that_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys"
    real = certificates._server

    def old(key, authority, authority_key, names, until):
        return real(key, authority, authority_key, names, datetime.now(UTC) - timedelta(seconds=1))

    with monkeypatch.context() as other:
        other.setattr(certificates, "_server", old)
        make_certificates(keys, 1)
    with listening(keys) as address:
        assert "its certificate expired on" in refusal(SuperLink(address=address, root_certificates=keys / "ca.crt"))


def test_plain_http_on_a_port_of_tls_and_tls_on_a_plain_port(valid: Path) -> None:
    with listening(valid) as address:
        assert "it speaks TLS, and was asked in plain HTTP; leave out insecure" in refusal(
            SuperLink(address=address, insecure=True)
        )
    with listening() as address:
        told = refusal(SuperLink(address=address, root_certificates=valid / "ca.crt"))
        assert "it speaks plain HTTP, and was asked over TLS; start it with its certificate" in told


def test_another_authority_another_name_and_nobody(valid: Path, tmp_path: Path) -> None:
    make_certificates(tmp_path / "other", 1)
    with listening(valid) as address:
        told = refusal(SuperLink(address=address, root_certificates=tmp_path / "other" / "ca.crt"))
        assert "is not signed by" in told
        assert "not signed by a known authority" in refusal(SuperLink(address=address))
    told = refusal(SuperLink(address="127.0.0.1:9", root_certificates=valid / "ca.crt"))
    assert "refused; is it running there?" in told


def test_what_is_no_certificate(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("no certificate")
    with pytest.raises(ScenarioError, match="no certificate in PEM format"):
        check_certificate(tmp_path / "ca.crt", "here")
    with pytest.raises(ScenarioError, match="cannot be read"):
        check_certificate(tmp_path / "none.crt", "here")


def test_a_node_whose_key_is_not_the_one_to_be_admitted(valid: Path, tmp_path: Path) -> None:
    check_pair(valid / "client-0" / "node.key", valid / "nodes" / "client-0.pub")
    make_node_key(tmp_path / "node.key", tmp_path / "node.pub")
    (valid / "client-1" / "node.key").write_bytes((tmp_path / "node.key").read_bytes())
    with pytest.raises(ScenarioError, match=r"client-1/node.key: an unknown key: .*client-1.pub is another's"):
        Services(Layout(valid, tmp_path / "runs"))
    (valid / "client-1" / "node.key").write_text("x")
    with pytest.raises(ScenarioError, match="no key of a node"):
        Services(Layout(valid, tmp_path / "runs"))


def test_without_keys_what_clients_draw_from_is_kept_with_the_services_and_goes_with_them(tmp_path: Path) -> None:
    services = Services(Layout(tmp_path / "deployment", tmp_path / "runs", insecure=True, clients=1))
    [settings] = [word for word in services.services["client-0"].command if "secrets-dir" in word]
    services.stop()
    assert str(tmp_path) not in settings
    assert not (tmp_path / "deployment").exists()


@pytest.mark.parametrize("known", [True, False])
def test_a_client_that_was_not_admitted_is_told_so_before_it_becomes_one(valid: Path, monkeypatch, known: bool) -> None:
    monkeypatch.setattr(Control, "admits", lambda self, key: known)
    link = SuperLink(address="127.0.0.1:9", root_certificates=valid / "ca.crt")
    if known:
        _refuse_stranger(valid / "client-0", link)
        return
    with pytest.raises(
        ScenarioError, match=r"client-0/node.key: an unknown key: the SuperLink at 127.0.0.1:9 has not admitted it"
    ):
        _refuse_stranger(valid / "client-0", link)


def test_a_client_waits_for_a_superlink_that_is_not_there_yet_and_not_for_one_that_cannot_be_trusted(
    valid: Path, tmp_path
) -> None:
    _refuse_stranger(valid / "client-0", SuperLink(address="127.0.0.1:9", root_certificates=valid / "ca.crt"))
    make_certificates(tmp_path / "other", 1)
    with listening(tmp_path / "other") as address, pytest.raises(ScenarioError, match="is not signed by"):
        _refuse_stranger(valid / "client-0", SuperLink(address=address, root_certificates=valid / "ca.crt"))
