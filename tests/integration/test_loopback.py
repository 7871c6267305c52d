"""A real deployment on this machine: SuperLink, server and two SuperNodes over TLS, each client with its own shard alone."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedleak.data.parts import write_shards
from fedleak.deploy.certificates import make_certificates, make_node_key
from fedleak.deploy.services import Layout, Services
from fedleak.engines.superlink import Control
from fedleak.errors import FedleakError
from fedleak.experiment import run as api
from fedleak.runs.folder import RunFolder
from fedleak.scenario.schema import Scenario, SuperLink, parse_scenario

pytestmark = pytest.mark.slow
CLIENTS = 2


def scenario(rounds: int, timeout: float = 300.0, **federation: Any) -> Scenario:
    return parse_scenario(
        {
            "name": "loopback",
            "federation": {"clients": CLIENTS, "rounds": rounds, "timeout": timeout, **federation},
            "attacks": [{"name": "closed-form", "rounds": [1]}],
        }
    )


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    place = tmp_path_factory.mktemp("loopback")
    make_certificates(place / "keys", CLIENTS)
    asked = scenario(1)
    write_shards(asked.data, CLIENTS, asked.seed, place / "shards", asked.secret)
    with Services(Layout(place / "keys", place / "runs", place / "shards")) as running:
        yield running


def deployed(services: Services, asked: Scenario) -> Scenario:
    federation = asked.federation.model_copy(update={"engine": "deployment", "superlink": services.superlink})
    return asked.model_copy(update={"federation": federation})


def timeless(summary: Any) -> Any:
    leakage = [{key: value for key, value in row.items() if "seconds" not in key} for row in summary["leakage"]]
    utility = {key: value for key, value in summary["utility"].items() if key != "cost"}
    return {**summary, "engine": "", "leakage": leakage, "utility": utility, "resources": {}}


def wait(done: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.3)


def test_a_deployment_gives_the_numbers_of_one_process(services: Services, tmp_path: Path) -> None:
    asked = scenario(1)
    expected = api.run(asked, out=tmp_path / "inprocess", device="cpu")
    result = api.run(deployed(services, asked), out=tmp_path / "deployed", device="cpu")
    assert result.here
    assert timeless(result.summary) == timeless(expected.summary)
    assert result.summary["model_sha256"] == expected.summary["model_sha256"]
    for got, wanted in zip(result.reconstructions, expected.reconstructions, strict=True):
        assert (got["client"], got["round"], got["label"]) == (wanted["client"], wanted["round"], wanted["label"])
        assert got["metrics"]["psnr"] == pytest.approx(wanted["metrics"]["psnr"], abs=0.1)
        assert wanted["metrics"]["psnr"] > 60
    assert result.report.is_file()
    assert RunFolder(result.path).manifest["engine"] == "deployment"
    assert (result.path.stat().st_mode & 0o777) == 0o700


@pytest.mark.parametrize(
    ("key", "answer"), [("none", '"POST /v1/fleet/register-node HTTP/1.1" 412'), ("wrong", 'activate-node HTTP/1.1" 4')]
)
def test_a_node_without_the_right_key_is_refused(services: Services, tmp_path: Path, key: str, answer: str) -> None:
    private = Path()
    if key == "wrong":
        private = tmp_path / "stranger"
        make_node_key(private, tmp_path / "stranger.pub")
    link = services.services["superlink"].log
    before = len(link.read_text(errors="replace"))
    stranger = services.node(0, private, name=f"stranger-{key}")
    stranger.start()
    try:
        wait(lambda: stranger.ended)
        assert stranger.process is not None
        assert stranger.process.returncode != 0
        assert "Failed to initialize the connection to the SuperLink" in stranger.log.read_text(errors="replace")
        assert answer in link.read_text(errors="replace")[before:]
        assert services.online() == CLIENTS
    finally:
        stranger.stop(2.0)


def test_a_client_that_does_not_trust_the_certificate_is_told_so(services: Services, tmp_path: Path) -> None:
    make_certificates(tmp_path / "other", 1)
    stranger = Control(SuperLink(address=services.superlink.address, root_certificates=tmp_path / "other" / "ca.crt"))
    with pytest.raises(FedleakError, match="certificate is not signed by"):
        stranger.online()
    stranger.close()
