import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedleak.deploy.certificates import make_certificates, node_keys
from fedleak.errors import ScenarioError


def connect(folder: Path, name: str, trusted: Path) -> None:
    """Shake hands over TLS in memory, as a client that reaches the server by ``name``."""
    here = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    here.load_cert_chain(folder / "superlink" / "server.crt", folder / "superlink" / "server.key")
    there = ssl.create_default_context(cafile=str(trusted))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = here.wrap_bio(to_server, to_client, server_side=True)
    client = there.wrap_bio(to_client, to_server, server_hostname=name)
    done = {client: False, server: False}
    for _ in range(10):
        for side in done:
            if not done[side]:
                try:
                    side.do_handshake()
                    done[side] = True
                except ssl.SSLWantReadError:
                    pass
    assert all(done.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("certificates") / "deployment"
    make_certificates(made, 11, ["superlink", "10.0.0.7"])
    return made


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "superlink", "10.0.0.7"])
def test_a_client_that_trusts_the_authority_reaches_the_server_by_its_names(folder: Path, name: str) -> None:
    connect(folder, name, folder / "client-0" / "ca.crt")


def test_another_name_or_another_authority_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        connect(folder, "elsewhere", folder / "ca.crt")
    make_certificates(tmp_path / "other", 1)
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(folder, "localhost", tmp_path / "other" / "ca.crt")


def test_what_is_private_is_the_owners_alone_and_each_service_has_only_its_own(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        public = path.suffix in {".crt", ".pub"}
        assert mode == (0o700 if path.is_dir() else 0o644 if public else 0o600), path
    names = {path.name: sorted(inner.name for inner in path.iterdir()) for path in folder.iterdir() if path.is_dir()}
    assert names["superlink"] == ["ca.crt", "server.crt", "server.key", "superexec.secret"]
    assert names["server"] == ["ca.crt", "superexec.secret"]
    assert names["client-3"] == ["ca.crt", "node.key"]


def test_node_keys_are_pairs_that_flower_takes_in_the_order_of_the_clients(folder: Path) -> None:
    public = node_keys(folder)
    assert [path.stem for path in public] == [f"client-{number}" for number in range(11)]
    for path in public:
        private = load_ssh_private_key((folder / path.stem / "node.key").read_bytes(), None)
        known = load_ssh_public_key(path.read_bytes())
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert isinstance(known, ec.EllipticCurvePublicKey)
        assert known.curve.name == "secp384r1"
        assert private.public_key().public_numbers() == known.public_numbers()


def test_the_authority_can_sign_and_the_server_cannot(folder: Path) -> None:
    for path, expected in ((folder / "ca.crt", True), (folder / "superlink" / "server.crt", False)):
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is expected


def test_keys_are_never_overwritten(folder: Path) -> None:
    before = (folder / "ca.key").read_bytes()
    with pytest.raises(ScenarioError, match="exists already"):
        make_certificates(folder, 1)
    assert (folder / "ca.key").read_bytes() == before


@pytest.mark.parametrize("name", ["bad name!", "bücher.example", "-x", ""])
def test_what_is_no_name_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="expected a host name"):
        make_certificates(tmp_path / "keys", 1, [name])
    assert not (tmp_path / "keys").exists()
    make_certificates(tmp_path / "keys", 1, ["lab-1.example.org", "10.0.0.7"])
