"""The compose file on a real engine: it trains, attacks, refuses strangers, and survives what it loses."""

import json
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from fedleak import load_scenario
from fedleak.experiment import run as api
from fedleak.runs.folder import RunFolder

from .conftest import Compose, found

pytestmark = pytest.mark.slow

_FAULTS = """\
name = "faults"
secret = "4d0a6e2f8b1c4957a3e8d5f07c9b1264"
federation.rounds = 6
federation.timeout = 25.0
[[attacks]]
name = "closed-form"
rounds = [1]
clients = 1
"""


@pytest.fixture(scope="module")
def compose(project: Path) -> Compose:
    compose = Compose(project)
    compose("build", "-q")
    compose("up", "-d")  # returns once every service has started
    return compose


def only_run(project: Path, name: str) -> RunFolder:
    [path] = (project / "runs").glob(f"{name}-*")
    return RunFolder(path)


def ended(compose: Compose, service: str = "submit") -> Any:
    """Return a service's exit code once it has one."""
    state = compose.inspect(service)["State"]
    return state["ExitCode"] if state["Status"] == "exited" else None


def test_up_trains_attacks_and_leaves_the_figures_of_one_process(compose: Compose, project: Path, tmp_path: Path) -> None:
    compose.wait(lambda: ended(compose) is not None, 900)
    assert ended(compose) == 0, compose.logs("submit")
    folder = only_run(project, "quickstart")
    asked = load_scenario(project / "scenarios" / "quickstart.toml", ["federation.clients=2"])
    expected = api.run(asked, out=tmp_path / "run", device="cpu")
    got, wanted = folder.rows("reconstructions.jsonl"), expected.reconstructions
    assert len(wanted) == 12
    assert [(row["round"], row["client"], row["attack"]) for row in got] == [
        (row["round"], row["client"], row["attack"]) for row in wanted
    ]
    for row, same in zip(got, wanted, strict=True):
        assert row["metrics"]["psnr"] == pytest.approx(same["metrics"]["psnr"], abs=0.1)
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["rounds"] == 3
    assert summary["model_sha256"] == expected.summary["model_sha256"]
    assert (folder.path / "report.html").stat().st_size > 10_000
    assert folder.path.stat().st_mode & 0o777 == 0o700
    assert folder.path.name in compose.logs("submit")


def test_containers_run_as_the_file_says(compose: Compose) -> None:
    seen: dict[str, set[str]] = {}
    for service in ("superlink", "server", "client-0", "client-1"):
        found_ = compose.inspect(service)
        assert found_["State"]["Health"]["Status"] == "healthy", service
        assert found_["Config"]["User"] == "1000:1000"
        assert found_["HostConfig"]["ReadonlyRootfs"]
        assert not found_["HostConfig"]["PortBindings"]
        seen[service] = {mount["Name"] for mount in found_["Mounts"] if mount["Type"] == "volume"}
    assert all(len(volumes) == 1 for volumes in seen.values())
    assert len(set.union(*seen.values())) == 4


def test_the_server_has_no_image_of_a_client_and_no_way_out(compose: Compose) -> None:
    find = (
        "find / -xdev -name '*.parquet' -not -path '*/site-packages/*' -not -path '*/dist-packages/*' 2>/dev/null; find /service"
    )
    held = {service: compose("exec", "-T", service, "sh", "-c", find).stdout.split() for service in ("server", "client-0")}
    assert "/service/ca.crt" in held["server"]  # so that an empty answer is no success
    assert [path for path in held["server"] if path.endswith((".parquet", "node.key"))] == []
    assert {"/service/shard/train.parquet", "/service/node.key"} <= set(held["client-0"])
    assert compose("exec", "-T", "server", "touch", "/service/x", check=False).returncode != 0
    for service in ("superlink", "server", "client-0"):
        [network] = compose.inspect(service)["NetworkSettings"]["Networks"]
        text = subprocess.run([found("docker"), "network", "inspect", network], text=True, capture_output=True, check=True).stdout
        assert json.loads(text)[0]["Internal"], service


def test_no_layer_of_the_image_holds_a_key(compose: Compose) -> None:
    image = compose.inspect("server")["Image"]
    names: list[str] = []
    with subprocess.Popen([found("docker"), "save", image], stdout=subprocess.PIPE) as saved:
        assert saved.stdout is not None
        with tarfile.open(fileobj=saved.stdout, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.name.endswith(("layer.tar",)) or "blobs" in member.name else None
                if content is not None and member.size > 10_000:
                    with tarfile.open(fileobj=content, mode="r|*") as layer:
                        names += [entry.name for entry in layer]
    assert any(name.endswith("fedleak/deploy/bundle.py") for name in names)
    secrets = [name for name in names if name.endswith((".key", ".secret", ".pub")) or "/.env" in name or name == ".env"]
    assert [name for name in secrets if "-packages/" not in name and not name.startswith(("usr/share", "etc/ssl"))] == []


@pytest.mark.parametrize("key", ["none", "wrong"])
def test_a_node_without_the_right_key_is_refused(compose: Compose, key: str) -> None:
    command = "flower-supernode --superlink superlink:8000 --root-certificates /service/ca.crt"
    if key == "wrong":
        command = (
            f"fedleak deploy certs /tmp/own --clients 1 && {command} --auth-supernode-private-key /tmp/own/client-0/node.key"
        )
    before = len(compose.logs("superlink"))
    stranger = compose("run", "--rm", "--no-deps", "-T", "client-0", "sh", "-c", command, check=False, timeout=180)
    assert stranger.returncode != 0
    assert "Failed to initialize the connection to the SuperLink" in stranger.stdout + stranger.stderr
    refusal = {"none": 'register-node HTTP/1.1" 412', "wrong": 'activate-node HTTP/1.1" 4'}[key]
    assert refusal in compose.logs("superlink")[before:]


def test_a_client_killed_and_a_network_cut_cost_their_rounds_and_no_more(compose: Compose, project: Path) -> None:
    (project / "faults.toml").write_text(_FAULTS)
    faulty = Compose(project, SCENARIO="faults.toml")
    trained = faulty.logs("client-1").count("Receiving: train message")
    faulty("up", "-d")  # over the federation that runs: the one-shots run again, keys stay, shards are made anew
    faulty.wait(lambda: faulty.logs("client-1").count("Receiving: train message") > trained)
    faulty("kill", "client-1")
    faulty.wait(lambda: list((project / "runs").glob("faults-*")))
    folder = only_run(project, "faults")

    def rounds() -> list[dict[str, Any]]:
        return [row for row in folder.rows("rounds.jsonl") if row["round"]]

    faulty.wait(lambda: rounds())
    assert [failure["client"] for failure in rounds()[0]["failures"]] == [1]
    faulty("start", "client-1")
    faulty.wait(lambda: not rounds()[-1]["failures"])
    network = next(iter(faulty.inspect("client-0")["NetworkSettings"]["Networks"]))
    docker = found("docker")
    subprocess.run([docker, "network", "disconnect", network, faulty.container("client-0")], check=True)
    cut = time.monotonic()
    faulty.wait(lambda: rounds()[-1]["failures"])
    assert [failure["client"] for failure in rounds()[-1]["failures"]] == [0]
    time.sleep(max(0.0, 60.0 - (time.monotonic() - cut)))
    subprocess.run([docker, "network", "connect", network, faulty.container("client-0")], check=True)
    faulty.wait(lambda: ended(faulty) is not None, 900)
    assert ended(faulty) == 1  # clients failed
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["rounds"] == 6
    assert [row["round"] for row in rounds()] == [1, 2, 3, 4, 5, 6]
    assert "no reply" in (folder.path / "report.html").read_text()


def test_a_server_killed_and_started_again_goes_on_with_its_run(compose: Compose, project: Path, tmp_path: Path) -> None:
    (project / "resumed.toml").write_text(_FAULTS.replace("faults", "resumed"))
    first = Compose(project, SCENARIO="resumed.toml")
    first("up", "-d")
    first.wait(lambda: list((project / "runs").glob("resumed-*")) or ended(first) is not None)
    assert ended(first) is None, first.logs("submit")
    folder = only_run(project, "resumed")

    def rounds() -> list[int]:
        return [row["round"] for row in folder.rows("rounds.jsonl") if row["round"]]

    first.wait(lambda: len(rounds()) >= 2 or ended(first) is not None)
    assert ended(first) is None, first.logs("submit")
    first("kill", "server")
    first.wait(lambda: ended(first) is not None)
    assert ended(first) != 0
    broken = rounds()
    assert len(broken) < 6
    again = Compose(project, SCENARIO="resumed.toml", RESUME=folder.path.name)
    again("up", "-d")  # the server starts again, and a new submission names its folder
    again.wait(lambda: ended(again) is not None, 900)
    assert ended(again) == 0, again.logs("submit")
    assert only_run(project, "resumed").path == folder.path
    assert rounds() == [1, 2, 3, 4, 5, 6]
    summary = json.loads((folder.path / "summary.json").read_text())
    expected = api.run(load_scenario(project / "resumed.toml", ["federation.clients=2"]), out=tmp_path / "run", device="cpu")
    assert (summary["rounds"], summary["client_errors"]) == (6, 0)
    assert summary["model_sha256"] == expected.summary["model_sha256"]
    assert (folder.path / "report.html").stat().st_size > 10_000
